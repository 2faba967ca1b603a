"""An answer token by token: the decoding thread waits, between two passes, until the next token is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from engine.engine import Engine
from engine.generation.request import SamplingSettings
from engine.snapshot import ChatEvent


def stepwise(engine: Engine, prompt: Sequence[int], max_new_tokens: int) -> Iterator[ChatEvent]:
    """Events of the greedy answer; closing it cancels."""
    request = engine._request(prompt, max_new_tokens, SamplingSettings())
    tell, asked, over = request.tell, threading.Semaphore(0), threading.Event()

    def tell_and_wait(event: ChatEvent) -> None:
        tell(event)
        if event.finish_reason is None and not over.is_set():
            asked.acquire(timeout=60)

    request.tell = tell_and_wait
    submission = engine._serving.submit(request, caller="")
    try:
        for event in submission:
            yield event
            asked.release()
    finally:
        over.set()
        submission.cancel()
        asked.release()
