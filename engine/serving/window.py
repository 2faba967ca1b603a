"""Answers prompts of any number, so many at once: what a batch is to the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait

from engine.generation.request import BatchAnswer, BatchPrompt
from engine.serving.request import CANCELLED, Answer, Submission


def answer_all(
    submit: Callable[[BatchPrompt], Submission], prompts: Iterable[BatchPrompt], at_once: int
) -> Iterator[BatchAnswer]:
    """Each answer as it ends; prompts are taken as places become free. Ends early when an answer was cancelled.

    Raises what `submit` and any answer raise; whatever the end, nothing goes on behind it.
    """
    numbered = enumerate(prompts)
    pending: dict[Future[Answer], tuple[int, Submission]] = {}
    try:
        while True:
            while len(pending) < at_once and (next_one := next(numbered, None)) is not None:
                submission = submit(next_one[1])
                pending[submission.future] = next_one[0], submission
            if not pending:
                return
            ended = wait(pending, return_when=FIRST_COMPLETED).done
            for future in sorted(ended, key=lambda one: pending[one][0]):
                answer = future.result()
                if answer.finish_reason == CANCELLED:
                    return
                number, _ = pending.pop(future)
                yield BatchAnswer(number, answer.ids, answer.finish_reason)
    finally:
        for _, submission in pending.values():
            submission.cancel()
        wait(pending)
