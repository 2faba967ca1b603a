"""Where a token's time goes with every expert in memory, beside stock transformers in the same run.

`python -m engine.lab.token_time [--layers N] [--threads N]` prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from engine.checkpoint.builtin import builtin_path
from engine.checkpoint.dense_model import load_dense
from engine.model.experts import attach
from engine.model.fast_decode import FastDecoder
from engine.model.kernels.decode_kernels import DecodeKernels
from engine.model.kv_cache import KvCache
from engine.model.resident_experts import ResidentExperts, find_experts

Step = Callable[[int], torch.Tensor]
"""Decodes one token: its id -> logits [vocabulary]."""

BUILTIN_SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1344,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": True,
}


def breakdown(
    path: Path | None = None,
    layers: int = 30,
    context: int = 128,
    prefill_tokens: int = 1000,
    tokens: int = 8,
    rounds: int = 5,
) -> dict[str, Any]:
    """Milliseconds per token of each part of the fast path, and of each way to decode and to prefill.

    `path`: a checkpoint; else the built-in model where it is built, else random weights of its shape with
    `layers` layers. The ways take turns, `rounds` times; medians and minima are given.
    """
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            path = builtin_path() if builtin_path().exists() and layers == 30 else _random_model(Path(folder), layers)
        with torch.inference_mode():
            return _measure(path, context, prefill_tokens, tokens, rounds)


def _measure(path: Path, context: int, prefill_tokens: int, tokens: int, rounds: int) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    dense = load_dense(path)
    stored_dtype = dense.model.get_output_embeddings().weight.dtype
    provider = ResidentExperts(find_experts(stock), stored_dtype)
    attach(dense.experts_modules, provider)
    ids = torch.randint(0, stock.config.vocab_size, (1, max(context, prefill_tokens)))
    kernel_times = {field.name: 0.0 for field in dataclasses.fields(DecodeKernels)}
    ways = {
        "stock_grouped_mm": _transformers_step(stock, "grouped_mm", ids[:, :context], None),
        "stock_eager": _transformers_step(stock, "eager", ids[:, :context], None),
        "seam": _transformers_step(dense.model, "expertflow", ids[:, :context], _new_cache(dense.model, context)),
        "fast": _fast_step(dense.model, provider, ids[:, :context], None),
        "fast_timed": _fast_step(dense.model, provider, ids[:, :context], kernel_times),
    }
    decode, differences = _decode_in_turns(ways, tokens, rounds)
    prefills = {
        "stock_grouped_mm": _prefill(stock, "grouped_mm", ids[:, :prefill_tokens]),
        "seam": _prefill(dense.model, "expertflow", ids[:, :prefill_tokens]),
    }
    prefill = _in_turns(prefills, rounds)
    timed_steps = (rounds + 1) * tokens
    parts = {name: seconds * 1e3 / timed_steps for name, seconds in kernel_times.items()}
    parts["python_and_provider"] = decode["fast_timed"]["mean_ms"] - sum(parts.values())
    return {
        "model": str(path),
        "threads": torch.get_num_threads(),
        "context": context,
        "decode": decode,
        "parts_ms": parts,
        "prefill_tokens": prefill_tokens,
        "prefill": prefill,
        "logits_difference": differences,
        "ratios": {
            "fast_decode_over_stock": decode["stock_grouped_mm"]["median_ms"] / decode["fast"]["median_ms"],
            "prefill_over_stock": prefill["stock_grouped_mm"]["median_ms"] / prefill["seam"]["median_ms"],
        },
    }


def _random_model(folder: Path, layers: int) -> Path:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**BUILTIN_SHAPE, num_hidden_layers=layers, max_position_embeddings=8192)
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _new_cache(model: Any, context: int) -> KvCache:
    return KvCache(model.config, context + 1024)


def _transformers_step(model: Any, experts: str, prompt: torch.Tensor, cache: KvCache | None) -> Step:
    model.set_experts_implementation(experts)
    state = model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    def step(token: int) -> torch.Tensor:
        if model.get_experts_implementation() != experts:
            model.set_experts_implementation(experts)
        return model(torch.tensor([[token]]), past_key_values=state, use_cache=True).logits[0, -1]

    return step


def _fast_step(
    model: Any, provider: ResidentExperts, prompt: torch.Tensor, kernel_times: dict[str, float] | None
) -> Step:
    cache = _new_cache(model, prompt.shape[1])
    model(prompt, past_key_values=cache, logits_to_keep=1)
    kernels = DecodeKernels() if kernel_times is None else _timed(DecodeKernels(), kernel_times)
    decoder = FastDecoder(model, cache, provider, kernels)
    return lambda token: torch.from_numpy(decoder.step(token).copy())


def _timed(kernels: DecodeKernels, seconds: dict[str, float]) -> DecodeKernels:
    def wrap(name: str, kernel: Callable) -> Callable:
        def call(*arguments: Any) -> None:
            start = time.perf_counter()
            kernel(*arguments)
            seconds[name] += time.perf_counter() - start

        return call

    return DecodeKernels(**{name: wrap(name, getattr(kernels, name)) for name in seconds})


def _decode_in_turns(
    ways: dict[str, Step], tokens: int, rounds: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Times of each way over the same tokens, and how far its logits are from the first way's, over their norm."""
    reference: list[torch.Tensor] = []
    differences = dict.fromkeys(ways, 0.0)
    clocks = {name: _Clock() for name in ways}
    for turn in range(rounds + 1):  # the first turn warms up
        for name, step in ways.items():
            with clocks[name]:
                logits = [step(1000 + turn * tokens + token) for token in range(tokens)]
            if not reference:
                reference = logits
            elif turn == 0:
                errors = [float((a - b).norm() / b.norm()) for a, b in zip(logits, reference, strict=True)]
                differences[name] = max(errors)
    return {name: clock.summary(tokens) for name, clock in clocks.items()}, differences


def _prefill(model: Any, experts: str, ids: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model.set_experts_implementation(experts)
        cache = _new_cache(model, ids.shape[1]) if experts == "expertflow" else None
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    return run


def _in_turns(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    clocks = {name: _Clock() for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            with clocks[name]:
                run()
    return {name: clock.summary(1) for name, clock in clocks.items()}


class _Clock:
    """Wall and processor time of each `with` block; the first one is a warm-up."""

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._processor: list[float] = []

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *exception: object) -> None:
        self._wall.append(time.perf_counter() - self._start[0])
        self._processor.append(time.process_time() - self._start[1])

    def summary(self, tokens: int) -> dict[str, float]:
        """Milliseconds per token, of all blocks but the first; the mean counts every block."""
        return {
            "median_ms": median(self._wall[1:]) / tokens * 1e3,
            "min_ms": min(self._wall[1:]) / tokens * 1e3,
            "mean_ms": sum(self._wall) / len(self._wall) / tokens * 1e3,
            "processor_median_ms": median(self._processor[1:]) / tokens * 1e3,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--prefill-tokens", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    arguments = vars(parser.parse_args())
    if threads := arguments.pop("threads"):
        torch.set_num_threads(threads)
    print(json.dumps(breakdown(**arguments), indent=1))


if __name__ == "__main__":
    main()
