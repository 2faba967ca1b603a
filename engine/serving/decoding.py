"""Answers several requests at once: in each turn prompts are read on by a piece, then a token of every chat.

Requests join between two turns and leave at any token. A long prompt is read in pieces between others' tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from engine.errors import Cancelled
from engine.generation.activity import Activity
from engine.generation.joint_reading import JointReading
from engine.generation.sequence import TokenSequence
from engine.generation.step_gate import StepGate
from engine.scheduling.token_scheduler import TokenScheduler
from engine.serving.places import Places
from engine.serving.request import Request
from engine.snapshot import ChatEvent

FEWEST_SHARED_ROWS = 128  # of prompts between two steps of others: they wait, but each pass streams experts
SHARED_PART = 4  # of a prefill pass of full length, where that is more


@dataclass(eq=False)
class Member:
    """A request with a place. `kept` tokens of its prompt were there already; it decodes once the rest is read."""

    request: Request
    sequence: TokenSequence
    kept: int
    decodes: bool = False


class Decoding:
    """What is done in a turn; called by one thread. A request's failure is told to it alone.

    `scheduler` chooses whose tokens the next step reads.
    """

    def __init__(
        self,
        places: Places,
        reading: JointReading,
        end_ids: Collection[int],
        gate: StepGate,
        activity: Activity,
        flush: Callable[[], None],
        scheduler: TokenScheduler,
    ) -> None:
        """`flush`: called between two passes when an answer has ended."""
        self._places, self._reading, self._end_ids = places, reading, end_ids
        self._gate, self._activity, self._flush = gate, activity, flush
        self._scheduler = scheduler
        self.members: list[Member] = []

    @property
    def has_place(self) -> bool:
        return self._places.has_free

    @property
    def context_used(self) -> int:
        """Tokens of the chat that joined last."""
        return self._places.latest.length

    def join(self, request: Request) -> None:
        """Gives the request a free place."""
        sequence = self._places.take(request.prompt)
        with self._gate.step():
            kept = sequence.keep_common_start(request.prompt)
        self.members.append(Member(request, sequence, kept))
        self._tell_activity()

    def turn(self) -> None:
        """Reads on in the prompts, then a token of each chat of a group."""
        for member in [member for member in self.members if member.request.is_cancelled()]:
            self._end(member, member.request.cancellation())
        self._read_prompts()
        decoding = [member for member in self.members if member.decodes]
        if decoding:
            self._step(decoding)

    def fail_all(self, error: BaseException) -> None:
        """Something went wrong that is nobody's own fault."""
        for member in list(self.members):
            self._fail(member, error)

    def _tell_activity(self) -> None:
        decoding = sum(member.decodes for member in self.members)
        self._activity.chats(len(self.members) - decoding, decoding)

    # -- prompts --------------------------------------------------------------------------------------------------

    def _read_prompts(self) -> None:
        """A pass of full length where nobody decodes, else as many tokens as others can be made to wait for."""
        reading = [member for member in self.members if not member.decodes]
        if reading and len(reading) == len(self.members):
            self._read_chunk(reading[0])
            return
        for number, member in enumerate(reading):
            if number == 0:
                left = max(FEWEST_SHARED_ROWS, member.sequence.prefill_rows // SHARED_PART)
            while left > 0 and member in self.members and not member.decodes:
                left -= self._read_chunk(member, left)

    def _read_chunk(self, member: Member, at_most: int | None = None) -> int:
        """Reads one pass of the prompt; returns its tokens. After the last the answer's first token is chosen."""
        request, sequence = member.request, member.sequence
        request.progress = sequence.length - member.kept, len(request.prompt) - member.kept
        self._activity.prefill_planned(*request.progress)
        try:
            chunk = sequence.next_chunk(request.prompt, at_most)
            with self._gate.step(), self._activity.prefill(len(chunk)):
                logits = sequence.prefill(chunk, request.is_cancelled)
        except Cancelled:
            self._end(member, request.cancellation())
            return 0
        except BaseException as error:  # the request's own, whatever it is
            self._fail(member, error)
            return 0
        request.progress = sequence.length - member.kept, len(request.prompt) - member.kept
        if sequence.length == len(request.prompt) and not request.is_cancelled():
            member.decodes = True
            self._tell_activity()
            self._choose(member, logits, first=True)
        return len(chunk)

    # -- tokens ---------------------------------------------------------------------------------------------------

    def _step(self, waiting: Sequence[Member]) -> None:
        with self._scheduler.group(waiting, [member.request.last_token for member in waiting]) as chosen:
            group = [waiting[place] for place in chosen]
            sequences = [member.sequence for member in group]
            tokens = [member.request.last_token for member in group]
            with self._gate.step(), self._activity.step(len(group)):
                alone, expected = len(waiting) == 1, self._scheduler.expected
                outcomes = self._reading.read(sequences, tokens, alone, expected)
        for member, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                self._fail(member, outcome)
            else:
                self._choose(member, outcome)

    def _choose(self, member: Member, logits: torch.Tensor, first: bool = False) -> None:
        try:
            event = member.request.choose(logits, self._end_ids, member.sequence.context_length)
        except BaseException as error:
            self._fail(member, error)
            return
        self._activity.token(time.perf_counter() - member.request.asked_at if first else None)
        if event.finish_reason is None:
            member.request.tell(event)
        else:
            self._end(member, event)

    # -- leaving --------------------------------------------------------------------------------------------------

    def _end(self, member: Member, event: ChatEvent) -> None:
        self._leave(member)
        member.request.tell(event)

    def _fail(self, member: Member, error: BaseException) -> None:
        self._leave(member)
        member.request.fail(error)

    def _leave(self, member: Member) -> None:
        self.members.remove(member)
        self._places.give_back(member.sequence)
        with self._gate.step():
            self._flush()
        self._tell_activity()
