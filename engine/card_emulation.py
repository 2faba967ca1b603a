"""Trying a card that is not here: its memory as the budget, its link slowed as much as this machine computes slower.

Both transfers and computation then take the same multiple of the card's time, so that what is waited for and what is
hidden stay in the card's proportion, and every speed is read in the card's time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from engine.cache.links.emulated import EmulatedCardLink, emulated_card
from engine.cache.timed_transfers import EmulatedSpeed
from engine.checkpoint.expert_key import ExpertKey
from engine.hardware.available_memory import available_ram_bytes
from engine.hardware.gpu_profiles import GpuProfile
from engine.hardware.machine import cpu_name
from engine.hardware.measurements import keep_measurement, kept_measurement
from engine.hardware.memory_plan import Footprint, MemoryPlan, make_plan
from engine.model import experts as experts_function
from engine.model.fast_decode import FastDecoder
from engine.model.kv_cache import KvCache
from engine.model.resident_experts import ResidentLease

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.cache.link import Link
    from engine.checkpoint.dense_model import DenseModel
    from engine.checkpoint.expert_index import ExpertIndex

Progress = Callable[[str, int, int], None]

WARM_UP_TOKENS = 3
MEASURED_TOKENS = 12
CHECKED_TOKENS = 4
STEADY = 1.2  # a kept measurement holds while a token takes neither longer nor shorter by this
MEASURED_SECONDS = 4.0  # where tokens take long, fewer are measured
STAGE = "Measuring a token's time on this machine"


@dataclass(frozen=True)
class CardEmulation:
    """`resident_token_seconds`: a token here with every expert there, measured; `card_token_seconds`: on the card at
    the least, its weights read once at its memory's bandwidth.
    """

    card: GpuProfile
    resident_token_seconds: float
    card_token_seconds: float

    @property
    def dilation(self) -> float:
        """Seconds here for each second of the card's."""
        return self.resident_token_seconds / self.card_token_seconds

    @property
    def label(self) -> str:
        return self.card.label

    @property
    def speed(self) -> EmulatedSpeed:
        """The card's link in this machine's time."""
        return EmulatedSpeed(
            self.card.link_bytes_per_second / self.dilation, self.card.link_latency_seconds * self.dilation
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know when reading its results."""
        here, there = (1e3 * seconds for seconds in (self.resident_token_seconds, self.card_token_seconds))
        return (
            f"Emulation of a card that is not here ({self.card.words}): tokens per second are in its time, which runs "
            f"{self.dilation:.3g} times as fast as this machine's.",
            f"With every expert there a token takes {here:.3g} ms here (measured) and at least {there:.3g} ms on the "
            "card (its weights read once at its memory's bandwidth), so the link is slowed by their ratio.",
            "Real cards do not quite reach that least time, so they wait for a smaller share of it than is shown; what "
            "the processor does beside (predicting, sampling) is counted in the card's time too, so as cheaper than "
            "it is. The first token's time is this machine's.",
        )

    def to_dict(self) -> dict[str, Any]:
        """For reports: what was emulated, and how."""
        measured = {name: value for name, value in asdict(self).items() if name != "card"}
        return {"label": self.label, "card": asdict(self.card), **measured, "dilation": self.dilation}


def plan_memory(footprint: Footprint, budget: str | int, link: str, held_bytes: int = 0) -> MemoryPlan:
    """The plan against RAM (`held_bytes` of it are this engine's own), or against the emulated card's memory."""
    card = emulated_card(link)
    if card is None:
        return make_plan(footprint, budget, available_ram_bytes() + held_bytes)
    plan = make_plan(footprint, budget, card.vram_bytes)
    sentence = f"Emulation: the memory is that of a card that is not here ({card.words}), all of it free."
    return replace(plan, reasons=(sentence, *plan.reasons))


def emulate_card(link: Link, dense: DenseModel, on_progress: Progress | None = None) -> CardEmulation | None:
    """Gives a link that is called after a card its speed; None for every other link.

    The token's time is measured with all experts taken from the far copies, and kept for this machine and checkpoint
    as long as a few tokens at load bear it out: link and computation have to be slow by the same factor now.
    """
    if not isinstance(link, EmulatedCardLink):
        return None
    fast = FastDecoder.supports(dense.model) is None

    def measure(tokens: int) -> float:
        return measure_resident_token(dense, link, fast, tokens, on_progress)

    here = steady_measurement(_identity(dense.index, fast), measure)
    emulation = CardEmulation(link.card, here, link.card.token_seconds(_bytes_of(dense)))
    link.speed = emulation.speed
    return emulation


def steady_measurement(identity: tuple[object, ...], measure: Callable[[int], float]) -> float:
    """What is kept, if `measure` with few tokens agrees; else `measure` with many, which is then kept."""
    kept = kept_measurement(identity)
    if kept is not None and 1 / STEADY < measure(CHECKED_TOKENS) / kept < STEADY:
        return kept
    measured = measure(MEASURED_TOKENS)
    keep_measurement(identity, measured)
    return measured


def _bytes_of(dense: DenseModel) -> int:
    return bytes_read_per_token(dense.model, dense.index, dense.model.get_input_embeddings().weight.element_size())


def bytes_read_per_token(model: PreTrainedModel, index: ExpertIndex, embedding_itemsize: int) -> int:
    """Weights of one decoded token in the checkpoint's dtype: the dense ones and top-k experts of each layer.

    Of an input embedding that is not the head's one row is read: it is not counted. Neither is the KV cache.
    `model` may be a skeleton without weights.
    """
    tied = model.all_tied_weights_keys
    is_head = embedding_name(model) in {*tied.keys(), *tied.values()}
    table_bytes = 0 if is_head else model.get_input_embeddings().weight.numel() * embedding_itemsize
    dense_bytes = max(index.total_bytes - index.total_expert_bytes - table_bytes, 0)
    return dense_bytes + expert_bytes_per_token(index)


def embedding_name(model: PreTrainedModel) -> str:
    """What the input embedding's weight is called."""
    embedding = model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is embedding)


def expert_bytes_per_token(index: ExpertIndex) -> int:
    """Bytes of top-k experts of every layer."""
    used = sum(min(index.top_k, count) for count in index.experts_per_layer)
    return index.total_expert_bytes * used // sum(index.experts_per_layer)


def measure_resident_token(
    dense: DenseModel, link: EmulatedCardLink, fast: bool, tokens: int, on_progress: Progress | None = None
) -> float:
    """Median seconds of a decoded token, of so many, with every expert there. Leaves the model's experts attached to
    nothing that lasts: attach the cache afterwards.
    """
    provider = FarExperts(link)
    experts_function.attach(dense.experts_modules, provider)
    total = WARM_UP_TOKENS + tokens
    kv = KvCache(dense.model.config, total + 1)
    decoder = FastDecoder(dense.model, kv, provider) if fast else None
    token, seconds = 1, []
    with torch.inference_mode():
        for number in range(total):
            began = time.perf_counter()
            token = int(decoder.step(token).argmax()) if decoder else _forward(dense, kv, token)
            seconds.append(time.perf_counter() - began)
            if on_progress is not None:
                on_progress(STAGE, number + 1, total)
            if number > WARM_UP_TOKENS and sum(seconds[WARM_UP_TOKENS:]) > MEASURED_SECONDS:
                break
    return median(seconds[WARM_UP_TOKENS:])


class FarExperts:
    """All experts of an emulated link as if they were near."""

    def __init__(self, link: EmulatedCardLink) -> None:
        self._link = link

    def observe(self, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> None:
        """Nothing here depends on the routing."""

    def acquire(self, layer: int, experts: Sequence[int]) -> ResidentLease:
        return ResidentLease([(expert, self._link.weights(ExpertKey(layer, expert), 0)) for expert in experts])


def _forward(dense: DenseModel, kv: KvCache, token: int) -> int:
    output = dense.model(input_ids=torch.tensor([[token]]), past_key_values=kv, use_cache=True, logits_to_keep=1)
    return int(output.logits[0, -1].argmax())


def _identity(index: ExpertIndex, fast: bool) -> tuple[object, ...]:
    """All that a token's time depends on: the weights' files, how they are computed, the machine."""
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in index.files]
    return "resident token", files, index.slot_bytes, fast, cpu_name(), torch.get_num_threads(), torch.__version__
