"""From a budget to slots: integer arithmetic on measured quantities, with a sentence for each decision.

Nothing here touches a device, a file or a clock.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace

from engine.errors import BudgetTooSmall, InvalidSetting, NotEnoughMemory

MIB = 1 << 20
GIB = 1 << 30
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": MIB, "GIB": GIB}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMG]i?B|B)", re.IGNORECASE)
_PERCENT = re.compile(r"(?P<number>\d+(\.\d+)?)\s*%")
_AUTO_MARGIN_BYTES = GIB  # left to the desktop and other programs by "auto"
_AUTO_MARGIN_SHARE = 10  # ... or one tenth of what is free, whichever is more
_AUTO_MARGIN_MOST_SHARE = 4  # ... but of little memory never more than a quarter


@dataclass(frozen=True)
class Footprint:
    """What a model needs, in bytes, before any expert is held."""

    dense_bytes: int
    kv_bytes: int
    workspace_bytes: int
    slot_bytes: int
    experts_total: int
    minimum_slots: int  # one layer's top-k
    model_bytes_total: int  # all weights in the checkpoint's dtype
    precision: str = "native"  # of the experts; anything else is lossy
    notes: tuple[str, ...] = ()  # sentences that belong to every plan for this model

    @property
    def fixed_bytes(self) -> int:
        return self.dense_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by owner. `near_bytes_total` is their sum; with a budget in bytes it never exceeds that."""

    near_bytes_dense: int
    near_bytes_kv: int
    near_bytes_workspace: int
    near_bytes_experts: int
    slots: int
    experts_total: int
    slot_bytes: int
    minimum_slots: int
    model_bytes_total: int
    budget: str
    precision: str = "native"  # of the experts; anything else is lossy
    margin_bytes: int = 0  # left to other programs; only "auto" decides that
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def near_bytes_total(self) -> int:
        return self.near_bytes_dense + self.near_bytes_kv + self.near_bytes_workspace + self.near_bytes_experts

    @property
    def memory_saving(self) -> float:
        """1 - near_bytes_total / model_bytes_total; negative when everything is held and more."""
        return 1.0 - self.near_bytes_total / self.model_bytes_total

    @property
    def expert_share(self) -> float:
        """Share of the model's experts that fit the slots."""
        return self.slots / self.experts_total

    def to_dict(self) -> dict[str, object]:
        derived = {"near_bytes_total": self.near_bytes_total, "memory_saving": self.memory_saving}
        return asdict(self) | derived | {"expert_share": self.expert_share}


def make_plan(footprint: Footprint, budget: str | int, available_bytes: int) -> MemoryPlan:
    """The plan for `budget`: "auto", a percentage of the experts ("25%") or an absolute size ("6GiB", bytes).

    `available_bytes` is what near memory has free now, counting what this engine already holds. Raises
    BudgetTooSmall (absolute budgets), NotEnoughMemory ("auto"), InvalidSetting (unreadable budget).
    """
    text = str(budget).strip()
    if text.lower() == "auto":
        plan = _auto_plan(footprint, available_bytes)
    elif match := _PERCENT.fullmatch(text):
        plan = _percent_plan(footprint, float(match["number"]), text)
    else:
        plan = _absolute_plan(footprint, parse_bytes(text), text)
    return _with_memory_warning(plan, available_bytes)


def parse_bytes(text: str) -> int:
    """Bytes from "6GiB", "500 MB" or a plain number of bytes. Raises InvalidSetting."""
    if text.isdecimal():
        return int(text)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidSetting(
            f"{text!r} is not a memory budget.",
            'Use "auto", a share of the experts such as "25%", or a size such as "6GiB".',
        )
    return int(float(match["number"]) * _UNITS[match["unit"].upper()])


def minimum_budget_bytes(footprint: Footprint) -> int:
    """The smallest absolute budget that runs this model at this context."""
    return footprint.fixed_bytes + footprint.minimum_slots * footprint.slot_bytes


def _plan(footprint: Footprint, slots: int, budget: str, *reasons: str) -> MemoryPlan:
    held = f"{slots} of {footprint.experts_total} experts"
    size = format_bytes(slots * footprint.slot_bytes)
    return MemoryPlan(
        near_bytes_dense=footprint.dense_bytes,
        near_bytes_kv=footprint.kv_bytes,
        near_bytes_workspace=footprint.workspace_bytes,
        near_bytes_experts=slots * footprint.slot_bytes,
        slots=slots,
        experts_total=footprint.experts_total,
        slot_bytes=footprint.slot_bytes,
        minimum_slots=footprint.minimum_slots,
        model_bytes_total=footprint.model_bytes_total,
        budget=budget,
        precision=footprint.precision,
        reasons=(
            *footprint.notes,
            *reasons,
            f"The cache holds {held} ({slots / footprint.experts_total:.0%}, {size}).",
        ),
    )


def _auto_plan(footprint: Footprint, available_bytes: int) -> MemoryPlan:
    usual = min(_AUTO_MARGIN_BYTES, available_bytes // _AUTO_MARGIN_MOST_SHARE)
    margin = max(usual, available_bytes // _AUTO_MARGIN_SHARE)
    room = available_bytes - margin - footprint.fixed_bytes
    slots = min(room // footprint.slot_bytes, footprint.experts_total)
    if slots < footprint.minimum_slots:
        need = minimum_budget_bytes(footprint)
        raise NotEnoughMemory(
            f"This model needs {format_bytes(need)} and {format_bytes(available_bytes)} are free, of which "
            f"{format_bytes(margin)} stay with other programs.",
            "Close other programs, lower the context length, or set the budget by hand.",
        )
    free = f"{format_bytes(available_bytes)} are free; {format_bytes(margin)} of them stay with other programs."
    all_fit = slots == footprint.experts_total
    decision = "Everything fits, so everything is held." if all_fit else "The rest of the room goes to experts."
    return replace(_plan(footprint, slots, "auto", free, decision), margin_bytes=margin)


def _percent_plan(footprint: Footprint, percent: float, text: str) -> MemoryPlan:
    slots = min(int(percent * footprint.experts_total / 100), footprint.experts_total)
    if slots >= footprint.minimum_slots:
        return _plan(footprint, slots, text, f"{text} of the experts was asked for.")
    minimum = footprint.minimum_slots
    warning = (
        f"{text} of {footprint.experts_total} experts is {slots}; raised to {minimum}, what one layer uses for a token."
    )
    plan = _plan(footprint, minimum, text, f"{text} of the experts was asked for.")
    return replace(plan, warnings=(warning,))


def _absolute_plan(footprint: Footprint, budget_bytes: int, text: str) -> MemoryPlan:
    slots = min((budget_bytes - footprint.fixed_bytes) // footprint.slot_bytes, footprint.experts_total)
    if slots < footprint.minimum_slots:
        need = minimum_budget_bytes(footprint)
        raise BudgetTooSmall(
            f"A budget of {format_bytes(budget_bytes)} is too small: this model needs at least {format_bytes(need)} "
            f"({format_bytes(footprint.dense_bytes)} dense weights, {format_bytes(footprint.kv_bytes)} of context, "
            f"{format_bytes(footprint.workspace_bytes)} workspace and {footprint.minimum_slots} experts).",
            f"Set the budget to {-(-need // MIB)} MiB or more, or lower the context length.",
            need,
        )
    return _plan(
        footprint,
        slots,
        text,
        f"A total of {format_bytes(budget_bytes)} was asked for; what is left after the rest goes to experts.",
    )


def _with_memory_warning(plan: MemoryPlan, available_bytes: int) -> MemoryPlan:
    if plan.near_bytes_total <= available_bytes:
        return plan
    warning = (
        f"The plan takes {format_bytes(plan.near_bytes_total)} but only {format_bytes(available_bytes)} are free: "
        "expect swapping or a crash; lower the budget or close other programs."
    )
    return replace(plan, warnings=(*plan.warnings, warning))


def format_bytes(nbytes: int) -> str:
    """Bytes for people: "512 MB", "6.2 GB" (powers of ten, as cards and disks are sold)."""
    if nbytes < 10**9:
        return f"{nbytes / 10**6:.0f} MB"
    return f"{nbytes / 10**9:.1f} GB"
