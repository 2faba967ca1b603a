"""The child's side of a benchmark: a process of its own that loads one contender and answers on request.

Protocol: one JSON object per line on stdin (`{"do": "load" | "answer" | "leave", ...}`), one per line on stdout.
Everything libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Protocol, TextIO

from engine.errors import EngineError
from engine.lab.process_memory import peak_rss_bytes, reset_peak_rss, return_freed_memory


class Contender(Protocol):
    """One way of running a model."""

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Loads the model at `request["path"]` and returns facts about how."""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Greedily continues `request["ids"]` by `request["new_tokens"]` tokens.

        Returns at least `ids` (the new ones), `prefill_seconds` (to the first token) and `decode_seconds`
        (all further tokens).
        """


def serve(contender: Contender) -> None:
    """Answers requests until told to leave or stdin ends."""
    replies = _claim_stdout()
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "leave":
            return
        print(json.dumps(_reply(contender, request)), file=replies, flush=True)


def _reply(contender: Contender, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["do"] == "load":
            reply = contender.load(request)
            return_freed_memory()
            return {**reply, "peak_rss_bytes": peak_rss_bytes()}
        reset_peak_rss()
        reply = contender.answer(request)
        return {**reply, "peak_rss_bytes": peak_rss_bytes()}
    except EngineError as error:
        return {"error": {"cause": error.cause, "remedy": error.remedy}}
    except Exception as error:  # a peer may fail in ways of its own: the report says how
        return {"error": {"cause": f"{type(error).__name__}: {error}", "remedy": "Leave this contender out."}}


def _claim_stdout() -> TextIO:
    """Keeps stdout for replies alone: C libraries that print get stderr too."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return replies
