"""The components of the page and where they stand; what they do is wired elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr
from gradio.components.chatbot import ExampleMessage

from app.ui import html
from app.ui.chats_at_once import choices as chats_at_once_choices
from app.ui.markdown import LATEX_DELIMITERS
from app.ui.theme import asset

EXAMPLES: list[ExampleMessage] = [
    {"text": "Explain in simple words why the sky is blue."},
    {"text": "Write a short poem about memory."},
    {"text": "Give me three tips for sleeping better."},
    {"text": "Write a Python function that reverses a string."},
]
PLACEHOLDER = (
    "<h2>Ask something</h2><p>The model runs on this machine. Watch which experts it uses, and move the "
    "memory slider while it answers.</p>"
)


@dataclass
class SamplingControls:
    system_prompt: gr.Textbox
    temperature: gr.Slider
    top_p: gr.Slider
    top_k: gr.Slider
    min_p: gr.Slider
    repetition_penalty: gr.Slider
    max_new_tokens: gr.Slider
    seed: gr.Textbox
    stop: gr.Textbox

    def all(self) -> list[gr.Textbox | gr.Slider]:
        return list(vars(self).values())


@dataclass
class ChatParts:
    stamp: gr.Textbox
    new_chat: gr.Button
    chat_list: gr.Radio
    earlier: gr.Button
    chatbot: gr.Chatbot
    live: gr.Markdown
    facts: gr.HTML
    notice: gr.HTML
    again: gr.Button
    drop_oldest: gr.Button
    fresh_chat: gr.Button
    message: gr.Textbox
    send: gr.Button
    stop: gr.Button


@dataclass
class BudgetParts:
    stamp: gr.Textbox
    load_again: gr.Button
    slider: gr.Slider
    moved: gr.State  # when, in monotonic seconds
    auto: gr.Button
    marks: gr.HTML
    label: gr.HTML


@dataclass
class ModelParts:
    chosen: gr.State
    accordion: gr.Accordion
    local: gr.Dropdown
    name: gr.Textbox
    look: gr.Button
    offer: gr.HTML
    download: gr.Button
    cancel: gr.Button
    load: gr.Button
    go_back: gr.Button


@dataclass
class CardParts:
    accordion: gr.Accordion
    text: gr.Markdown


@dataclass
class RecordParts:
    accordion: gr.Accordion
    switch: gr.Checkbox
    explanation: gr.Markdown
    learn: gr.Checkbox
    learn_explanation: gr.Markdown
    forget: gr.Button
    state: gr.Markdown


@dataclass
class Parts:
    chat: ChatParts
    sampling: SamplingControls
    chats_at_once: gr.Dropdown
    records: RecordParts
    budget: BudgetParts
    models: ModelParts
    card: CardParts
    panels: gr.HTML
    timer: gr.Timer


def build_layout(model_name: str) -> Parts:
    """Lays out the page inside the current `gr.Blocks`."""
    with gr.Row(elem_id="topbar"):
        gr.HTML(html.header(model_name, "", "Starting", "wait"), elem_id="header")
        gr.HTML(asset("tools.html"), elem_id="tools")
    with gr.Row(elem_id="shell", equal_height=False):
        with gr.Column(elem_id="chats", min_width=0):
            new_chat = gr.Button("New chat", elem_id="new-chat", size="md")
            gr.HTML('<h2 class="side-title">Chats</h2>')
            chat_list = gr.Radio([], show_label=False, container=False, elem_id="chat-list", label="Saved chats")
            sampling, chats_at_once = _sampling_controls()
            records = _record_parts()
        with gr.Column(elem_id="talk", min_width=0):
            chat, load_again, go_back = _chat_parts(new_chat, chat_list)
        with gr.Column(elem_id="side", min_width=0):
            budget = _budget_parts(load_again)
            panels = gr.HTML(
                "",
                html_template='<div class="panels"></div>',
                js_on_load=asset("panels.js"),
                apply_default_css=False,
                elem_id="panels",
            )
            with gr.Accordion("Why the memory is divided like this", open=False, elem_id="why"):
                gr.HTML('<p class="quiet">The reasons appear when the model is loaded.</p>', elem_id="reasons")
            models = _model_parts(go_back)
            with gr.Accordion("About the model", open=False, elem_id="about") as about:
                card = CardParts(about, gr.Markdown("", elem_id="model-card", show_label=False))
    return Parts(chat, sampling, chats_at_once, records, budget, models, card, panels, gr.Timer(1.0))


def _chat_parts(new_chat: gr.Button, chat_list: gr.Radio) -> tuple[ChatParts, gr.Button, gr.Button]:
    stamp = gr.Textbox("", visible="hidden", elem_id="stamp", label="stamp")
    with gr.Column(elem_id="scroll"):
        earlier = gr.Button("Show earlier messages", visible=False, size="sm", elem_id="earlier")
        chatbot = gr.Chatbot(
            show_label=False,
            container=False,
            height=None,
            elem_id="chatbot",
            layout="panel",
            editable="user",
            buttons=["copy"],
            latex_delimiters=LATEX_DELIMITERS,
            feedback_options=None,
            placeholder=PLACEHOLDER,
            examples=EXAMPLES,
            autoscroll=False,
            allow_tags=False,
            reasoning_tags=[("<think>", "</think>")],
        )
        live = gr.Markdown("", elem_id="live", latex_delimiters=LATEX_DELIMITERS, line_breaks=True, show_label=False)
        facts = gr.HTML("", elem_id="facts")
    with gr.Column(elem_id="below"):
        gr.HTML("", elem_id="load-notice")
        gr.HTML("", elem_id="warnings")
        notice = gr.HTML("", elem_id="notice")
        with gr.Row(elem_id="ways-out"):
            again = gr.Button("Answer again", visible=False, size="sm", elem_id="again")
            drop_oldest = gr.Button("Drop the oldest turns and answer", visible=False, size="sm", elem_id="drop")
            fresh_chat = gr.Button("Start a new chat", visible=False, size="sm", elem_id="fresh")
            load_again = gr.Button("Try again", visible=False, size="sm", elem_id="load-again")
            go_back = gr.Button("Back", visible=False, size="sm", elem_id="go-back")
        with gr.Row(elem_id="composer", equal_height=False):
            message = gr.Textbox(
                placeholder="Write a message",
                show_label=False,
                container=False,
                label="Message",
                lines=1,
                max_lines=10,
                interactive=False,
                elem_id="message",
                scale=1,
            )
            send = gr.Button("Send", variant="primary", elem_id="send", scale=0, min_width=84)
            stop = gr.Button("Stop", visible=False, elem_id="stop", scale=0, min_width=84)
        gr.HTML('<p class="keys">Enter sends · Shift+Enter new line · Esc stops · everything stays on this machine</p>')
    chat = ChatParts(
        stamp, new_chat, chat_list, earlier, chatbot, live, facts, notice,
        again, drop_oldest, fresh_chat, message, send, stop,
    )  # fmt: skip
    return chat, load_again, go_back


def _budget_parts(load_again: gr.Button) -> BudgetParts:
    stamp = gr.Textbox("", visible="hidden", elem_id="plan-stamp", label="plan")
    with gr.Column(elem_id="budget"):
        with gr.Row(elem_id="budget-title"):
            gr.HTML("<h2>Experts kept in memory</h2>")
            auto = gr.Button("Auto", size="sm", elem_id="auto", scale=0, min_width=64, interactive=False)
        slider = gr.Slider(
            1,
            100,
            100,
            step=1,
            label="Percent of experts kept in memory",
            show_label=False,
            container=False,
            interactive=False,
            buttons=[],
            elem_id="slider",
        )
        marks = gr.HTML("", elem_id="marks")
        label = gr.HTML(html.budget_waiting(), elem_id="budget-words")
    return BudgetParts(stamp, load_again, slider, gr.State(float("-inf")), auto, marks, label)


def _model_parts(go_back: gr.Button) -> ModelParts:
    with gr.Accordion("Choose another model", open=False, elem_id="models") as accordion:
        local = gr.Dropdown([], label="On this machine", elem_id="local-models", interactive=True)
        with gr.Row(elem_id="hub-row", equal_height=True):
            name = gr.Textbox(
                label="From Hugging Face, or a folder",
                placeholder="organisation/model",
                max_lines=1,
                elem_id="model-name",
                scale=1,
            )
            look = gr.Button("Look", size="sm", elem_id="look", scale=0, min_width=64)
        offer = gr.HTML("", elem_id="offer")
        gr.HTML("", elem_id="download-notice")
        with gr.Row(elem_id="model-ways"):
            download = gr.Button("Download", visible=False, size="sm", elem_id="download")
            cancel = gr.Button("Cancel the download", visible=False, size="sm", elem_id="cancel-download")
            load = gr.Button("Load", visible=False, size="sm", elem_id="load-model")
    return ModelParts(gr.State(""), accordion, local, name, look, offer, download, cancel, load, go_back)


def _sampling_controls() -> tuple[SamplingControls, gr.Dropdown]:
    with gr.Accordion("Answer settings", open=False, elem_id="answer-settings"):
        sampling = SamplingControls(
            system_prompt=gr.Textbox(
                label="System prompt", placeholder="How the assistant should behave", lines=3, max_lines=8
            ),
            temperature=_slider("Temperature", "0 always takes the likeliest word", 0, 2, 0.05),
            top_p=_slider("Top-p", "keep the likeliest words up to this share", 0.05, 1, 0.01),
            top_k=_slider("Top-k", "keep this many likeliest words; 0 keeps all", 0, 200, 1),
            min_p=_slider("Min-p", "drop words this much less likely than the likeliest", 0, 1, 0.01),
            repetition_penalty=_slider("Repetition penalty", "1 leaves it to the model", 1, 2, 0.01),
            max_new_tokens=_slider("Longest answer", "in tokens", 16, 4096, 16),
            seed=gr.Textbox(label="Seed", placeholder="random", max_lines=1),
            stop=gr.Textbox(label="Stop strings", placeholder="one a line", lines=2, max_lines=6),
        )
        chats_at_once = gr.Dropdown(
            chats_at_once_choices(),
            value=0,
            label="Chats answered at once",
            info="each needs memory of its own; counts when a model is loaded, or from the next start",
            elem_id="chats-at-once",
        )
    return sampling, chats_at_once


def _record_parts() -> RecordParts:
    with gr.Accordion("Recorded routing", open=False, elem_id="records") as accordion:
        return RecordParts(
            accordion,
            gr.Checkbox(label="Record the routing of my chats", elem_id="record-routing"),
            gr.Markdown("", elem_id="records-explanation", show_label=False),
            *_learn_switch(),
            gr.Button("Forget what was recorded and learnt", size="sm", elem_id="forget-routing"),
            gr.Markdown("", elem_id="records-state", show_label=False),
        )


def _learn_switch() -> tuple[gr.Checkbox, gr.Markdown]:
    learn = gr.Checkbox(label="Learn from my chats while nothing is asked", elem_id="learn-from-chats")
    explanation = gr.Markdown("", elem_id="learning-explanation", show_label=False)
    gr.HTML("", elem_id="learning-state")
    return learn, explanation


def _slider(label: str, info: str, low: float, high: float, step: float) -> gr.Slider:
    return gr.Slider(low, high, low, step=step, label=label, info=info, buttons=[])
