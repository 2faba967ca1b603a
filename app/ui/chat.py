"""What happens in the chat: send, follow the answer, stop, answer again, edit, open.

The page holds one hidden value, the stamp of its chat: the chat's id and a revision. Whatever changes a chat changes
its stamp, and a page whose stamp is old shows the chat anew and follows the answer being written, if there is one. So
a reloaded page, a second tab and the tab that asked all show the same. (One value, because two would arrive one after
the other and be read in between.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from app.answers import chat_of
from app.program import Program
from app.ui import html
from app.ui.chat_view import chat_view, live_words, shown_messages
from app.ui.layout import ChatParts
from app.ui.tabs import MESSAGES_SHOWN, Tabs
from engine.errors import EngineError

UPDATE_SECONDS = 0.1

Updates = dict[Any, Any]


class ChatEvents:
    """Handlers of the chat column and the list of chats."""

    def __init__(self, program: Program, parts: ChatParts, tabs: Tabs) -> None:
        self._program = program
        self._parts = parts
        self._tabs = tabs

    def wire(self, demo: gr.Blocks) -> None:
        """Connects the chat; must run inside the `gr.Blocks`."""
        p = self._parts
        view = [
            p.stamp, p.chat_list, p.earlier, p.chatbot, p.live, p.facts, p.notice,
            p.again, p.drop_oldest, p.fresh_chat, p.message, p.send, p.stop,
        ]  # fmt: skip
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        arrived = demo.load(self.arrive, p.stamp, view, js="(ignored) => expertflow.chatInAddress()", **quiet)
        arrived.then(None, None, None, js="() => expertflow.focusMessage()")
        gr.on([p.message.submit, p.send.click], self.send, [p.stamp, p.message], view, **quiet)
        gr.on([p.new_chat.click, p.fresh_chat.click], self.new, None, view, **quiet)
        p.chat_list.input(self.open, p.chat_list, view, **quiet)
        p.chatbot.example_select(self.send_example, p.stamp, view, **quiet)
        gr.on([p.again.click, p.chatbot.retry], self.answer_again, p.stamp, view, **quiet)
        p.drop_oldest.click(self.drop_oldest, p.stamp, view, **quiet)
        p.chatbot.edit(self.edit, p.stamp, view, **quiet)
        p.earlier.click(self.show_earlier, p.stamp, view, **quiet)
        p.stop.click(self.stop, p.stamp, None, **quiet)
        p.stamp.change(None, p.stamp, None, js="(stamp) => { expertflow.keepChatInAddress(stamp.split('|')[0]) }")
        again: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple"}
        changed = p.stamp.change(self.refresh, p.stamp, view, queue=False, **again)
        followed = changed.then(self.follow, p.stamp, p.live, concurrency_limit=None, **again)
        followed.then(self.refresh, p.stamp, view, queue=False, **again)

    # one handler for each thing a person can do

    def arrive(self, chat_id: str | None, request: gr.Request) -> Updates:
        """The page was opened. Only now a message can be sent: before, it would not know its chat."""
        return {**self.open(chat_id, request), self._parts.message: gr.update(interactive=True)}

    def open(self, chat_id: str | None, request: gr.Request) -> Updates:
        self._tabs[request.session_hash].messages_shown = MESSAGES_SHOWN
        answers = self._program.answers.in_progress
        if not chat_id and answers:
            chat_id = answers[-1].chat_id  # a page opened afresh shows what is going on
        if chat_id and self._program.store.chat(chat_id) is None:
            chat_id = ""
        return self._view(chat_id or "", request)

    def new(self, request: gr.Request) -> Updates:
        return {**self._view("", request), self._parts.message: ""}

    def send(self, stamp: str, text: str, request: gr.Request) -> Updates:
        if not text.strip():
            return self._nothing()
        program, chat_id = self._program, chat_of(stamp)
        try:
            program.answers.check_free(chat_id)
            if not chat_id or program.store.chat(chat_id) is None:
                chat_id = program.store.create_chat()
            program.store.add_user_message(chat_id, text.strip())
            program.answers.start(chat_id, program.preferences.sampling)
        except EngineError as error:
            return self._refusal(chat_id, error, request)
        return {**self._view(chat_id, request), self._parts.message: ""}

    def send_example(self, stamp: str, request: gr.Request, choice: gr.SelectData) -> Updates:
        return self.send(stamp, choice.value["text"], request)

    def answer_again(self, stamp: str, request: gr.Request) -> Updates:
        return self._answer_last(chat_of(stamp), request, drop_oldest=False)

    def drop_oldest(self, stamp: str, request: gr.Request) -> Updates:
        return self._answer_last(chat_of(stamp), request, drop_oldest=True)

    def edit(self, stamp: str, request: gr.Request, edited: gr.EditData) -> Updates:
        program, chat_id = self._program, chat_of(stamp)
        try:
            program.answers.check_free(chat_id)
            message = self._shown_at(chat_id, edited.index, request)
            program.store.edit_user_message(message.id, str(edited.value).strip())
            program.answers.start(chat_id, program.preferences.sampling)
        except EngineError as error:
            return self._refusal(chat_id, error, request)
        return self._view(chat_id, request)

    def show_earlier(self, stamp: str, request: gr.Request) -> Updates:
        self._tabs[request.session_hash].messages_shown += MESSAGES_SHOWN
        return self._view(chat_of(stamp), request)

    def stop(self, stamp: str) -> None:
        self._program.answers.stop(chat_of(stamp))

    def refresh(self, stamp: str, request: gr.Request) -> Updates:
        """The chat column anew, unless this page shows the chat as it is.

        What was sent last need not have arrived last: the page's own `stamp` has to agree.
        """
        chat_id, tab = chat_of(stamp), self._tabs[request.session_hash]
        if not tab.shows(chat_id) or tab.shown_stamp == stamp == self._program.answers.stamp(chat_id):
            return self._nothing()
        return self._view(chat_id, request)

    async def follow(self, stamp: str, request: gr.Request) -> AsyncIterator[Any]:
        """The answer being written, as it grows. One output only: Gradio works on every output of every update."""
        tab, chat_id, shown = self._tabs[request.session_hash], chat_of(stamp), ""
        tab.follower += 1
        follower = tab.follower
        while tab.follower == follower and (live := self._program.answers.live(chat_id)) is not None:
            words = live_words(live, self._program.host)
            if words != shown:
                shown = words
                yield words
            await asyncio.sleep(UPDATE_SECONDS)
        yield gr.skip()  # Gradio sends the last update again when a stream ends

    # what they share

    def _answer_last(self, chat_id: str, request: gr.Request, drop_oldest: bool) -> Updates:
        program = self._program
        try:
            program.answers.check_free(chat_id)
            asked = [m for m in program.store.messages(chat_id) if m.role == "user"]
            if not asked:
                return self._nothing()
            program.store.cut_after(chat_id, asked[-1].position)
            program.answers.start(chat_id, program.preferences.sampling, drop_oldest)
        except EngineError as error:
            return self._refusal(chat_id, error, request)
        return self._view(chat_id, request)

    def _shown_at(self, chat_id: str, index: int | tuple[int, int], request: gr.Request) -> Any:
        place = index if isinstance(index, int) else index[0]
        return shown_messages(self._program, chat_id, self._tabs[request.session_hash].messages_shown)[place]

    def _view(self, chat_id: str, request: gr.Request) -> Updates:
        """The whole chat column; this page stops following any other answer."""
        tab = self._tabs[request.session_hash]
        tab.follower += 1
        stamp = self._program.answers.stamp(chat_id)
        tab.shown_stamp = stamp
        return {
            **chat_view(self._program, self._parts, chat_id, tab.messages_shown),
            self._parts.stamp: stamp,
        }

    def _refusal(self, chat_id: str, error: EngineError, request: gr.Request) -> Updates:
        return {**self._view(chat_id, request), self._parts.notice: html.error_notice(error)}

    def _nothing(self) -> Updates:
        return {self._parts.notice: gr.skip()}
