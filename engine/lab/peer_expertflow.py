"""Contender: this engine, in a process of its own."""

from __future__ import annotations

import time
from typing import Any

from engine.hardware.held_memory import file_bytes, own_bytes
from engine.lab.contender import serve
from engine.lab.process_memory import peak_rss_bytes


class ExpertFlow:
    """Greedy answers of `Engine`."""

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Settings: `path`, `threads`, `budget`, `link`, `context_length`; `device` and `policy` ("auto" if absent)."""
        import torch

        from engine import Engine
        from engine.model import kernels  # noqa: F401 - part of what every contender has loaded

        torch.set_num_threads(request["threads"])
        self.imported_bytes = own_bytes()
        begin = time.perf_counter()
        self.engine = Engine.load(
            request["path"],
            budget=request["budget"],
            link=request["link"],
            device=request.get("device", "auto"),
            policy=request.get("policy", "auto"),
            context_length=request["context_length"],
        )
        snapshot = self.engine.snapshot()
        return {
            "load_seconds": time.perf_counter() - begin,
            "threads": torch.get_num_threads(),
            "near_bytes_total": snapshot.plan.near_bytes_total,
            "near_bytes_experts": snapshot.plan.near_bytes_experts,
            "slots": snapshot.plan.slots,
            "experts_total": snapshot.plan.experts_total,
            "fast_path": snapshot.fast_path,
            "link": snapshot.link,
            "policy": snapshot.policy,
            "device": str(self.engine.device),
            "emulation": snapshot.emulation and snapshot.emulation.to_dict(),
            "emulation_notes": snapshot.emulation.notes if snapshot.emulation else (),
            "model_bytes_total": snapshot.plan.model_bytes_total,
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `Contender.answer`; adds what the cache did and the most memory
        the process took beyond its libraries. What is not prefill counts as decoding, if any is."""
        before = self.engine.stats()
        begin = time.perf_counter()
        ids = self.engine.generate_ids(request["ids"], max_new_tokens=request["new_tokens"], temperature=0.0)
        seconds = time.perf_counter() - begin
        change = self.engine.stats() - before
        prefill_seconds = change.prefill_seconds if len(ids) > 1 else seconds
        return {
            "ids": ids,
            "prefill_seconds": prefill_seconds,
            "decode_seconds": seconds - prefill_seconds,
            "hit_rate": change.hit_rate,
            "stall_seconds": change.stall_seconds,
            "bytes_total": change.bytes_total,
            "peak_bytes": peak_rss_bytes() - file_bytes() - self.imported_bytes,
        }


if __name__ == "__main__":
    serve(ExpertFlow())
