"""Several answers at once: each step reads one token of every chat in one pass; chats join and leave at any token."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from engine.cache.expert_cache import ExpertCache
from engine.generation.activity import Activity
from engine.generation.joint_choice import JointChoice
from engine.generation.request import BatchAnswer, BatchPrompt
from engine.generation.sampling import Sampler
from engine.generation.sequence import TokenSequence
from engine.generation.step_gate import StepGate
from engine.model.ragged_step import RaggedStep


@dataclass(eq=False)
class _Member:
    number: int
    prompt: BatchPrompt
    sampler: Sampler
    sequence: TokenSequence
    ids: list[int]  # prompt and answer; the last was chosen, but not read yet


class BatchDecoding:
    """As many chats at once as there are `sequences`, each with keys and values of its own.

    `joint` reads their tokens in one pass where `choice` says so, else one after another; None: it cannot. Prompts are
    read one by one;
    `sampler_of` makes what draws a prompt's answer, and raises for a prompt that cannot be answered.
    """

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        joint: RaggedStep | None,
        sampler_of: Callable[[BatchPrompt], Sampler],
        experts: ExpertCache,
        end_ids: Collection[int],
        gate: StepGate,
        activity: Activity,
        cancelled: Callable[[], bool],
        choice: JointChoice,
    ) -> None:
        self._free = list(sequences)
        self._joint, self._sampler_of, self._experts = joint, sampler_of, experts
        self._end_ids = end_ids
        self._gate, self._activity, self._cancelled = gate, activity, cancelled
        self._members: list[_Member] = []
        self._choice = choice

    def answers(self, prompts: Iterable[BatchPrompt]) -> Iterator[BatchAnswer]:
        """Each answer as it ends, not in the order of the prompts, which are taken as places become free.

        Ends early, with what is whole, once cancelled. Raises what a single answer raises.
        """
        waiting = enumerate(prompts)
        try:
            while not self._cancelled():
                while self._free and (next_one := next(waiting, None)) is not None:
                    yield from self._join(*next_one)
                if not self._members:
                    return
                yield from self._step()
        finally:
            for member in list(self._members):
                self._leave(member)

    def _join(self, number: int, prompt: BatchPrompt) -> Iterator[BatchAnswer]:
        sampler = self._sampler_of(prompt)
        member = _Member(number, prompt, sampler, self._free.pop(), list(prompt.ids))
        self._members.append(member)
        sequence, logits = member.sequence, None
        sequence.keep_common_start(prompt.ids)  # of what was read here before, a system prompt for instance
        chunks = sequence.chunks(prompt.ids)
        self._activity.prefill_planned(sum(map(len, chunks)))
        for chunk in chunks:
            with self._gate.step(), self._activity.prefill(len(chunk)):
                logits = sequence.prefill(chunk, self._cancelled)
        assert logits is not None
        yield from self._choose(member, logits)

    def _step(self) -> Iterator[BatchAnswer]:
        members = list(self._members)
        with self._gate.step(), self._activity.step(len(members)):
            rows = self._read([member.sequence for member in members], [member.ids[-1] for member in members])
        for member, logits in zip(members, rows, strict=True):
            yield from self._choose(member, logits)

    def _read(self, sequences: list[TokenSequence], tokens: list[int]) -> Sequence[torch.Tensor]:
        if self._joint is None or len(sequences) == 1:
            return _apart(sequences, tokens)
        joint, began = self._choice.joint(len(sequences)), time.perf_counter()
        rows = self._together(self._joint, sequences, tokens) if joint else _apart(sequences, tokens)
        self._choice.took(len(sequences), joint, time.perf_counter() - began)
        return rows

    def _together(self, joint: RaggedStep, sequences: list[TokenSequence], tokens: list[int]) -> Sequence[torch.Tensor]:
        self._experts.begin_joint_step()
        try:
            rows = joint([sequence.kv for sequence in sequences], tokens)
        except BaseException as error:
            for sequence in sequences:
                sequence.kv.crop(sequence.length)
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            rows = None
        if rows is None:  # a pass of one chat needs less, and knows what to give up
            return _apart(sequences, tokens)
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.has_read(token)
        self._experts.step_ended()
        return list(rows)

    def _choose(self, member: _Member, logits: torch.Tensor) -> Iterator[BatchAnswer]:
        token = member.sampler.choose(logits, member.ids)
        member.ids.append(token)
        self._activity.token()
        new_tokens = len(member.ids) - len(member.prompt.ids)
        full = len(member.ids) > member.sequence.context_length
        if token in self._end_ids:
            yield self._ended(member, "stop")
        elif new_tokens >= member.prompt.max_new_tokens or full:
            yield self._ended(member, "length")

    def _ended(self, member: _Member, reason: str) -> BatchAnswer:
        self._leave(member)
        return BatchAnswer(member.number, member.ids[len(member.prompt.ids) :], reason)

    def _leave(self, member: _Member) -> None:
        self._members.remove(member)
        self._free.append(member.sequence)


def _apart(sequences: list[TokenSequence], tokens: list[int]) -> Sequence[torch.Tensor]:
    return [sequence.step(token).clone() for sequence, token in zip(sequences, tokens, strict=True)]
