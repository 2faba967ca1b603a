"""Contender: stock transformers, everything in memory, with any of its experts implementations.

On the processor in float32, as this program computes there; on a card in the checkpoint's own dtype.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from engine.lab.contender import serve
from engine.lab.page_cache import drop_pages


class StockTransformers:
    """Greedy `generate` of an unchanged model."""

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Settings: `path`, `threads`, `device` (the processor if absent)."""
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(request["threads"])
        begin = time.perf_counter()
        self.model = AutoModelForCausalLM.from_pretrained(
            request["path"],
            dtype="auto" if _on_card(request) else torch.float32,
            **self.loading_options(request),
        ).eval()
        return {"load_seconds": time.perf_counter() - begin, "threads": torch.get_num_threads()}

    def loading_options(self, request: dict[str, Any]) -> dict[str, Any]:
        """Further arguments of `from_pretrained`."""
        return {"device_map": {"": request["device"]}} if _on_card(request) else {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Settings: `implementation` (of the experts; unchanged if absent), `drop_pages` (files to forget
        between tokens, for lack of a memory limit that counts them)."""
        import torch

        if request.get("implementation"):
            self.model.set_experts_implementation(request["implementation"])
        clock = TokenClock([Path(file) for file in request.get("drop_pages", ())])
        away = self.model.device.type == "meta"  # offloaded: its hooks bring what they compute with
        prompt = torch.tensor([request["ids"]], device="cpu" if away else self.model.device)
        with torch.inference_mode():
            whole = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=request["new_tokens"],
                do_sample=False,
                streamer=clock,
                **self.stopping_options(request),
            )
        return {"ids": whole[0, prompt.shape[1] :].tolist(), **clock.seconds()}

    def stopping_options(self, request: dict[str, Any]) -> dict[str, Any]:
        """With `ignore_end` every contender writes the same number of tokens, whatever they say."""
        return {"min_new_tokens": 0, "eos_token_id": -1} if request.get("ignore_end") else {}


def _on_card(request: dict[str, Any]) -> bool:
    return str(request.get("device", "cpu")).startswith("cuda")


class TokenClock:
    """A streamer that notes when each token was there."""

    def __init__(self, forget: list[Path]) -> None:
        self._forget = forget
        self._paused_seconds = 0.0
        self._moments = [time.perf_counter()]

    def put(self, _: object) -> None:
        """Called with the prompt first, then with every new token."""
        now = time.perf_counter()
        self._moments.append(now - self._paused_seconds)
        drop_pages(self._forget)
        self._paused_seconds += time.perf_counter() - now

    def end(self) -> None:
        """Called after the last token."""

    def seconds(self) -> dict[str, float]:
        """`prefill_seconds` until the first new token, `decode_seconds` for all further ones."""
        begin, _, first, *rest = self._moments
        return {"prefill_seconds": first - begin, "decode_seconds": (rest[-1] if rest else first) - first}


if __name__ == "__main__":
    serve(StockTransformers())
