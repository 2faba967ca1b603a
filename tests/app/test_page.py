"""The page in a real browser, on a scripted engine: quick looks at everything a person can do."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import expect

from engine.errors import BudgetTooSmall
from engine.snapshot import ForesightSnapshot
from tests.app.fake_engine import LAYERS, FakeEngine, FakePlan

pytestmark = pytest.mark.browser

SHORT = ["The ", "answer ", "is ", "**42**", "."]


@pytest.fixture
def slow_engine():
    """Writes a word every 30 ms for as long as anybody looks."""
    return FakeEngine(words=[f"word{i} " for i in range(4000)], token_seconds=0.03)


def test_a_chat_streams_is_committed_and_there_after_a_reload(serve, visit):
    engine = FakeEngine(words=SHORT * 20, token_seconds=0.02)
    page = visit(serve(engine).address)
    page.see("#header", "demo")
    page.say("What is the answer?")
    page.see("#live", "The answer is 42")
    page.see("#stop")
    page.wait_for_answer()
    page.see("#chatbot [data-testid=bot] strong", "42")
    page.see("#facts", "100 tokens")
    page.not_see("#live .md p")
    assert "chat=" in page.page.url
    page.see("#chat-list label.selected", "What is the answer?")

    page.reload()
    page.see("#chatbot [data-testid=user]", "What is the answer?")
    assert len(page.answers()) == 1
    page.page.click("#new-chat")
    page.see("#chatbot", "Ask something")
    page.page.click("#chat-list label:has-text('What is the answer?')")
    page.see("#chatbot [data-testid=user]", "What is the answer?")


def test_the_page_is_there_while_the_model_loads_and_answers_what_was_asked_then(serve, visit):
    ready = threading.Event()

    def load(on_progress, on_plan, **options):
        on_progress("Building the built-in model", 9, 20)
        on_plan(FakePlan(slots=48))
        ready.wait(60)
        return FakeEngine(words=SHORT)

    page = visit(serve(load).address)
    page.see("#load-notice", "Building the built-in model")
    page.see("#load-notice", "as soon as the model is ready")
    page.see("#budget-words", "25 %: 48 of 192 experts")
    page.see("#panels .panel-memory", "Dense layers")
    page.not_see("#panels .tile")
    page.say("Are you there?")
    page.see("#live", "Waiting for the model: Building the built-in model, 45 %")
    ready.set()
    page.wait_for_answer()
    page.see("#chatbot [data-testid=bot]", "42")
    page.not_see("#load-notice .notice")


def test_a_failed_start_is_told_in_words_and_can_be_tried_again(serve, visit):
    def load(on_progress, budget, **options):
        if not tried:
            tried.append(budget)
            raise BudgetTooSmall("The budget of 1 MB is too small.", "Give 0.4 GB.", 400_000_000)
        return FakeEngine(words=SHORT)

    tried = []
    page = visit(serve(load).address)
    page.see("#load-notice", "The budget of 1 MB is too small.")
    page.see("#load-notice", "Give 0.4 GB.")
    page.page.click("#load-again")
    page.see("#header", "Ready")


def test_escape_stops_and_the_rest_stays(serve, visit, slow_engine):
    page = visit(serve(slow_engine).address)
    page.say("Count")
    page.see("#live", "word3")
    page.page.keyboard.press("Escape")
    page.wait_for_answer()
    page.see("#chatbot [data-testid=bot]", "word3")
    page.see("#facts", "stopped")


def test_answering_again_and_editing_replace_the_answer(serve, visit):
    engine = FakeEngine(words=SHORT)
    page = visit(serve(engine).address)
    page.say("first wording")
    page.wait_for_answer()
    engine.words = ["another ", "answer"]
    page.page.click("#chatbot button[aria-label=Retry]")
    page.see("#chatbot [data-testid=bot]", "another answer")
    page.wait_for_answer()
    assert len(page.answers()) == 1

    engine.words = ["edited"]
    page.page.click("#chatbot button[aria-label=Edit]")
    page.page.fill("#chatbot textarea", "second wording")
    page.page.click("#chatbot button[aria-label=Submit]")
    page.see("#chatbot [data-testid=bot]", "edited")
    page.wait_for_answer()
    page.see("#chatbot [data-testid=user]", "second wording")
    assert engine.prompts[-1] == [{"role": "user", "content": "second wording"}]


def test_shift_enter_makes_a_line_and_copy_copies(serve, visit):
    engine = FakeEngine(words=SHORT)
    page = visit(serve(engine).address)
    page.page.fill("#message textarea", "one")
    page.page.press("#message textarea", "Shift+Enter")
    page.page.keyboard.type("two")
    page.page.press("#message textarea", "Enter")
    page.wait_for_answer()
    page.see("#chatbot [data-testid=bot]", "42")
    assert engine.prompts[0][0]["content"] == "one\ntwo"
    page.page.locator("#chatbot .bot-row button[aria-label='Copy message']").click()
    assert page.page.evaluate("navigator.clipboard.readText()") == "The answer is **42**."


def test_a_second_tab_watches_and_has_its_own_chat_answered_beside(serve, visit, slow_engine):
    slow_engine.token_seconds = 0.5  # two pages on a busy machine take their time
    served = serve(slow_engine)
    first = visit(served.address)
    first.say("Count for me")
    first.see("#live", "word2")

    second = visit(served.address)
    second.see("#live", "word9")  # a page opened afresh shows the answer being written
    second.see("#header", "Answering")
    second.page.click("#new-chat")
    second.see("#chatbot", "Ask something")
    second.say("Me too")
    second.see("#live", "word1")
    second.see("#header", "Answering 2")
    written = len(first.text("#live"))
    second.page.click("#stop")
    second.wait_for_answer()
    first.see_more_than("#live", written)  # one tab's Stop is its own
    first.page.click("#stop")
    first.wait_for_answer()
    assert [len(page.answers()) for page in (first, second)] == [1, 1]


def test_a_closed_tab_loses_nothing(serve, visit, slow_engine):
    slow_engine.words = slow_engine.words[:60]
    served = serve(slow_engine)
    page = visit(served.address)
    page.say("Go on without me")
    page.see("#live", "word1")
    page.page.close()
    chat = served.program.store.chats()[0]
    served.program.answers.wait(chat.id, 60)
    assert served.program.store.messages(chat.id)[-1].finish_reason == "stop"
    again = visit(f"{served.address}/?chat={chat.id}")
    again.see("#chatbot [data-testid=bot]", "word59")


def test_a_reload_in_mid_answer_goes_on_streaming(serve, visit, slow_engine):
    page = visit(serve(slow_engine).address)
    page.say("Count")
    page.see("#live", "word5")
    page.forgive_leaving = True
    page.page.reload()
    page.see("#live", "word40")
    page.forgive_leaving = False
    page.page.click("#stop")
    page.wait_for_answer()


def test_the_slider_previews_and_resizes_during_an_answer_and_the_panels_follow(serve, visit, slow_engine):
    served = serve(slow_engine)
    page = visit(served.address)
    page.see("#budget-words", "192 of 192 experts")
    page.see("#budget-words", "Everything fits")
    page.say("Count")
    page.see("#live", "word3")
    page.pull_slider_to(0.25)
    page.see("#budget-words", "Move it while an answer is being written")  # no longer a preview
    slots = slow_engine.plan.slots
    assert 192 * 0.2 <= slots <= 192 * 0.3
    page.see("#budget-words", f"{slots} of 192 experts")
    page.see("#panels", "Left outside")
    page.see("#panels .readout", f"{slots} of 192 experts in memory")
    page.see("#panels .chart .ink-miss")
    page.page.click("#auto")
    page.see("#budget-words", "192 of 192 experts")
    page.page.click("#stop")
    page.wait_for_answer()


def test_the_budget_and_the_settings_of_answers_survive_a_restart(serve, visit, make_program):
    engine = FakeEngine(words=SHORT)
    page = visit(serve(engine).address)
    page.see("#budget-words", "192 of 192 experts")
    page.page.focus("#slider input[type=range]")
    for _ in range(3):
        page.page.keyboard.press("ArrowLeft")
    page.see("#budget-words", "97 %")
    page.wait_until(lambda: engine.plan.budget == "97%")  # the words may still be a preview
    page.page.click("#answer-settings button")
    page.page.fill("#answer-settings textarea >> nth=0", "Be brief.")
    page.page.fill("#answer-settings input[type=number] >> nth=0", "0.2")
    page.page.press("#answer-settings input[type=number] >> nth=0", "Tab")
    page.say("hi")
    page.wait_for_answer()
    page.see("#chatbot [data-testid=bot]", "42")
    assert engine.prompts[0][0] == {"role": "system", "content": "Be brief."}
    assert engine.arguments["temperature"] == 0.2

    later = make_program()
    assert later.host.options["budget"] == "97%"
    assert later.preferences.sampling.system_prompt == "Be brief."


def test_the_slider_stays_where_it_was_moved_while_an_earlier_position_is_still_applied(serve, visit):
    engine = FakeEngine(words=SHORT)
    resize = engine.resize
    engine.resize = lambda budget: (time.sleep(0.3), resize(budget))[1]
    page = visit(serve(engine).address)
    page.see("#budget-words", "192 of 192 experts")
    page.page.focus("#slider input[type=range]")
    for _ in range(6):
        page.page.keyboard.press("ArrowLeft")
        page.page.wait_for_timeout(120)
    page.wait_until(lambda: engine.plan.budget == "94%")
    expect(page.page.locator("#slider input[type=range]")).to_have_value("94")


def test_a_number_of_chats_that_is_not_on_the_list_is_shown_all_the_same(serve, visit):
    served = serve(FakeEngine(words=SHORT))
    served.program.set_chats_at_once(5)
    page = visit(served.address)
    page.page.click("#answer-settings button")
    expect(page.page.locator("#chats-at-once input")).to_have_value("5")
    page.page.fill("#chats-at-once input", "6")
    page.page.press("#chats-at-once input", "Enter")
    expect(page.page.locator("#chats-at-once input")).to_have_value("6")
    page.wait_until(lambda: served.program.preferences.chats_at_once == 6)
    served.program.set_chats_at_once(0)


def test_recording_is_off_until_it_is_switched_on_and_can_be_forgotten(serve, visit, make_program):
    engine = FakeEngine(words=SHORT)
    page = visit(serve(engine).address)
    page.see("#header", "Ready")
    page.page.click("#records > button")
    page.see("#records-explanation", "nothing of it leaves this machine")
    page.see("#records-state", "Nothing is recorded.")
    assert engine.store is None
    page.see("#learning-state", "Learning is off.")
    page.page.click("#learn-from-chats input")
    page.see("#records-state", "Switch recording on first.")
    expect(page.page.locator("#learn-from-chats input")).not_to_be_checked()
    page.page.click("#record-routing input")
    page.see("#records-state", "Recording begins with the next token.")
    assert engine.store.path.name == "demo-01234567.sqlite"
    page.page.click("#learn-from-chats input")
    page.see("#learning-state", "Learning waits for 20,000 more recorded tokens.")
    page.page.click("#forget-routing")
    page.see("#records-state", "Forgotten")
    page.reload()
    page.page.click("#records > button")
    expect(page.page.locator("#record-routing input")).to_be_checked()
    expect(page.page.locator("#learn-from-chats input")).to_be_checked()
    page.page.click("#record-routing input")
    page.see("#records-state", "Nothing is recorded.")
    assert engine.store is None
    expect(page.page.locator("#learn-from-chats input")).not_to_be_checked()


def test_a_full_context_has_a_way_out(serve, visit):
    engine = FakeEngine(words=["word "] * 40, context_length=100)
    page = visit(serve(engine).address)
    page.say("word " * 50)
    page.wait_for_answer()
    page.say("word " * 30)
    page.see("#notice", "the context holds 100")
    page.see("#fresh")
    page.page.click("#drop")
    page.not_see("#notice .notice")
    page.wait_for_answer()
    page.see("#facts", "40 tokens")
    assert [m["role"] for m in engine.prompts[-1] if m["role"] != "system"] == ["user"]


def test_an_interrupted_answer_is_shown_as_such(serve, visit):
    served = serve(FakeEngine(words=SHORT))
    store = served.program.store
    chat_id = store.create_chat()
    store.add_user_message(chat_id, "Tell me a story")
    answer = store.begin_answer(chat_id)
    store.save_answer(answer.id, "Once upon", [1], "interrupted")
    page = visit(f"{served.address}/?chat={chat_id}")
    page.see("#chatbot [data-testid=bot]", "Once upon")
    page.see("#notice", "interrupted")
    page.page.click("#again")
    page.see("#chatbot [data-testid=bot]", "42")


def test_what_a_model_writes_cannot_make_the_browser_ask_others(serve, visit):
    words = ["![x](https://example.org/a.png) ", "<img src='https://example.org/b.png'> ", "done"]
    page = visit(serve(FakeEngine(words=words)).address)
    page.say("Show me a picture")
    page.wait_for_answer()
    page.see("#chatbot [data-testid=bot]", "done")
    page.page.wait_for_timeout(500)  # what is refused is reported a moment later; a page that polls is never idle
    refused = [fault for fault in page.faults if "Content Security Policy" in fault]
    page.faults = [fault for fault in page.faults if fault not in refused]
    assert not [fault for fault in page.faults if "console" in fault]
    page.faults = []  # the browser notes the request before its policy refuses it
    assert refused or not page.page.locator("#chatbot img").count()


def test_dark_mode_is_a_choice_that_survives(serve, visit):
    page = visit(serve(FakeEngine()).address)
    was_dark = page.page.evaluate("document.body.classList.contains('dark')")
    page.page.click("#toggle-dark")
    assert page.page.evaluate("document.body.classList.contains('dark')") != was_dark
    page.reload()
    assert page.page.evaluate("document.body.classList.contains('dark')") != was_dark


def test_on_a_phone_the_panels_are_folded_and_nothing_is_cut_off(serve, visit):
    page = visit(serve(FakeEngine(words=SHORT)).address, width=390, height=844)
    expect(page.page.locator("#side")).to_be_hidden()
    expect(page.page.locator("#chats")).to_be_hidden()
    page.say("hi")
    page.wait_for_answer()
    page.see("#chatbot [data-testid=bot]", "42")
    page.page.click("#toggle-side")
    page.see("#panels .heat")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    page.page.click("#toggle-side")
    page.page.click("#toggle-chats")
    page.see("#chat-list label", "hi")
    page.page.click("#chat-list label")
    expect(page.page.locator("#chats")).to_be_hidden()


def test_chats_that_cannot_be_kept_are_announced(serve, visit, module_home):
    served = serve(FakeEngine(words=SHORT))
    served.program.store.warning = "The chats cannot be used: the disk is full."
    page = visit(served.address)
    page.see("#warnings", "the disk is full")


def test_the_model_card_is_there_for_whoever_opens_it(serve, visit, tmp_path):
    engine = FakeEngine()
    page = visit(serve(engine).address)
    page.page.click("#about button")
    page.see("#model-card", "without a model card")
    page.page.click("#about button")
    engine.model_path = tmp_path
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A toy\n\n**Small** <script>alert(1)</script>")
    page.page.click("#about button")
    page.see("#model-card strong", "Small")
    assert "license" not in page.text("#model-card")


class ForeseeingEngine(FakeEngine):
    """Says that it predicts, and how well."""

    def snapshot(self):
        recall = np.linspace(0.5, 0.9, LAYERS)
        found = ForesightSnapshot(
            pays=True, gain=0.31, recall_before_step=recall, recall_before_layer=recall + 0.05, source="Told by a test."
        )
        return replace(super().snapshot(), foresight=found)


def test_what_is_foreseen_and_what_other_budgets_would_give_are_drawn(serve, visit):
    engine = ForeseeingEngine(words=SHORT * 20, token_seconds=0.005)
    engine.resize("25%")
    page = visit(serve(engine).address)
    page.see("#panels", "Foreseen")
    page.not_see("#panels .panel:has-text('What other budgets would give')")
    page.say("What is the answer?")
    page.wait_for_answer()
    page.see("#panels", "On: measured 31 % faster than without it.")
    page.see("#panels", "Told by a test.")
    page.see("#panels .panel:has-text('What other budgets would give') .mark:has-text('now')")
    assert page.page.locator("#panels .line-hit").count() == 1
    assert page.page.locator("#panels .line-speed").count() == 1


def test_a_policy_that_predicts_nothing_shows_no_such_panel(serve, visit):
    page = visit(serve(FakeEngine(words=SHORT)).address)
    page.say("What is the answer?")
    page.wait_for_answer()
    page.see("#panels .panel:has-text('Time spent waiting')")
    page.not_see("#panels .panel:has-text('Foreseen')")
