"""llama.cpp's server with its cache of experts on the card (`--moe-cache-mib`): a contender where it is installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from typing import Any, Self

from engine.errors import EngineError

PROGRAM = "llama-server"
CACHE_OPTION = "--moe-cache-mib"
START_SECONDS = 900  # a checkpoint of tens of gigabytes comes from the disk
ANSWER_SECONDS = 3600
POLL_SECONDS = 0.25


class LlamaUnusable(EngineError):
    """llama.cpp is not installed, too old, or did not start."""


def why_not_llama(gguf: str | None) -> str | None:
    """Why llama.cpp is left out, in a sentence; None where it can be measured."""
    program = shutil.which(PROGRAM)
    if program is None:
        return f"llama.cpp is left out: no {PROGRAM} is on the path."
    if gguf is None:
        return "llama.cpp is left out: it needs the same model as a GGUF file (--gguf FILE)."
    told = subprocess.run([program, "--help"], capture_output=True, text=True, errors="replace", check=False)
    if CACHE_OPTION not in told.stdout + told.stderr:
        return f"llama.cpp is left out: {program} does not know {CACHE_OPTION}, which came with build b11481."
    return None


class LlamaServer:
    """All experts stay in RAM but for those in the cache; everything else is on the card. A context manager."""

    def __init__(self) -> None:
        self._port = _free_port()
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, gguf: str, cache_mib: int, context_length: int, threads: int) -> dict[str, Any]:
        """Starts it and waits until the model is there. Raises LlamaUnusable."""
        begin = time.perf_counter()
        options = {
            "--model": gguf,
            "--host": "127.0.0.1",
            "--port": self._port,
            "--n-gpu-layers": 999,
            CACHE_OPTION: cache_mib,
            "--ctx-size": context_length,
            "--threads": threads,
            "--parallel": 1,
        }
        program = shutil.which(PROGRAM) or PROGRAM
        command = [program, "--cpu-moe", *(str(part) for option in options.items() for part in option)]
        quiet = subprocess.DEVNULL
        self._server = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        self._wait_until_ready(self._server)
        return {"load_seconds": time.perf_counter() - begin, "command": command}

    def answer(self, ids: list[int], new_tokens: int) -> dict[str, Any]:
        """See `Contender.answer`; the times are the server's own."""
        question = {
            "prompt": ids,
            "n_predict": new_tokens,
            "temperature": 0.0,
            "cache_prompt": False,
            "return_tokens": True,
        }
        told = self._post("/completion", question)
        timings = told["timings"]
        return {
            "ids": told["tokens"],
            "prefill_seconds": timings["prompt_ms"] / 1e3,
            "decode_seconds": timings["predicted_ms"] / 1e3,
        }

    def close(self) -> None:
        """Ends the server. Idempotent."""
        if self._server is not None and self._server.poll() is None:
            self._server.kill()
            self._server.wait()

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if (code := server.poll()) is not None:
                raise LlamaUnusable(f"{PROGRAM} ended with code {code} while it loaded.", "Run it by hand to see why.")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5) as reply:
                    if reply.status == 200:
                        return
            except OSError:  # not listening yet, or still loading (503)
                time.sleep(POLL_SECONDS)
        raise LlamaUnusable(f"{PROGRAM} was not ready after {START_SECONDS} seconds.", "Leave --gguf out.")

    def _post(self, path: str, question: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(question).encode()
        address = f"http://127.0.0.1:{self._port}{path}"
        asked = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=ANSWER_SECONDS) as reply:
                told: dict[str, Any] = json.load(reply)
        except (OSError, ValueError) as error:
            raise LlamaUnusable(f"{PROGRAM} did not answer: {error}.", "Run it by hand to see why.") from error
        return told


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
