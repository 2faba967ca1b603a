"""A contender without a model, for tests of the protocol. Says things on stdout that must not reach the replies."""

from __future__ import annotations

import os
import sys
from typing import Any

from engine.errors import NotAMoeModel
from engine.lab.contender import serve


class FakeContender:
    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        print("loading", request["path"])
        os.system("echo from a child")
        if request["path"] == "dense":
            raise NotAMoeModel("It has no experts.", "Choose another.")
        if request["path"] == "exit":
            print("last words", file=sys.stderr)
            sys.stderr.flush()
            os._exit(3)
        self.ballast = bytearray(request.get("ballast_bytes", 0))
        self.ballast[:: 1 << 12] = b"x" * len(self.ballast[:: 1 << 12])
        return {"threads": int(os.environ["OMP_NUM_THREADS"])}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["new_tokens"] == 0:
            raise ZeroDivisionError("nothing to divide")
        return {"ids": request["ids"][: request["new_tokens"]], "prefill_seconds": 0.1, "decode_seconds": 0.2}


if __name__ == "__main__":
    serve(FakeContender())
