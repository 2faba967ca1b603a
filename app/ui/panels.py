"""From the engine's snapshot to what the panels draw. The page's script only draws; all words are made here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from app.machine_memory import NearMemory
from app.panel_history import Sample
from app.ui.plan_view import bytes_in_words, everything_fits

RECENT_SAMPLES = 10
SHOWN_STEP_BYTES = 50_000_000  # what other programs hold changes all the time: in steps, the panel stays still


def panel_data(snapshot: Any, samples: Sequence[Sample], memory: NearMemory) -> dict[str, Any]:
    """Everything the panels show, ready for JSON."""
    return {
        "tiles": tiles(snapshot, samples),
        "memory": memory_bars(snapshot.plan, memory),
        "heat": heat_map(snapshot),
        "series": series(samples),
        "totals": totals(snapshot.stats.to_dict()),
        "foresight": foresight(snapshot),
        "link": snapshot.link,
        "policy": snapshot.policy,
    }


def tiles(snapshot: Any, samples: Sequence[Sample]) -> list[dict[str, str]]:
    """Six figures, each with its unit and one line of explanation."""
    stats, plan = snapshot.stats.to_dict(), snapshot.plan
    recent = samples[-RECENT_SAMPLES:]
    speed, first = snapshot.recent_tokens_per_second, snapshot.time_to_first_token_seconds
    needed = _needed(stats)
    saved = max(plan.model_bytes_total - plan.near_bytes_total, 0)
    return [
        _tile("Speed", _number(speed), "tokens/s", _speed_hint(snapshot)),
        _tile("First token", _number(first), "s", _first_token_hint(snapshot.emulation)),
        _tile("Hit rate", _percent(_hit_share(recent)), "%", _overall(stats, needed), "hit"),
        _tile("Memory saved", *_split(saved), f"{100 * max(plan.memory_saving, 0):.0f} % of the model"),
        _tile(
            "Context",
            f"{snapshot.context_used:,}",
            f"/ {snapshot.context_length:,}",
            "tokens of the chat the model sees" + (", of the one that came last" if snapshot.running > 1 else ""),
        ),
        _tile("Waiting", _percent(_stall_share(recent)), "%", "of the time, for experts to arrive", "miss"),
    ]


def memory_bars(plan: Any, memory: NearMemory) -> dict[str, Any]:
    """One bar for the model (in memory against left outside), one for the whole memory of the machine."""
    owners = [
        {"key": "dense", "label": "Dense layers", "bytes": plan.near_bytes_dense},
        {"key": "kv", "label": "Chat context (KV)", "bytes": plan.near_bytes_kv},
        {"key": "workspace", "label": "Workspace", "bytes": plan.near_bytes_workspace},
        {"key": "experts", "label": "Experts", "bytes": plan.near_bytes_experts},
    ]
    others = _step(memory.others_bytes(plan.near_bytes_total))
    free = max(memory.total_bytes - others - plan.near_bytes_total, 0)
    margin = min(plan.margin_bytes, free)
    machine = [
        {"key": "ours", "label": "ExpertFlow", "bytes": plan.near_bytes_total},
        {"key": "others", "label": "Other programs", "bytes": others},
        {"key": "margin", "label": "Kept free for them", "bytes": margin},
        {"key": "free", "label": "Free", "bytes": free - margin},
    ]
    machine = [part for part in machine if part["bytes"] or part["key"] != "margin"]
    left_out = max(plan.model_bytes_total - plan.near_bytes_total, 0)
    for part in owners + machine:
        part["words"] = bytes_in_words(part["bytes"])
    return {
        "owners": owners,
        "machine": machine,
        "machine_name": memory.name,
        "machine_words": bytes_in_words(memory.total_bytes),
        "total_words": bytes_in_words(plan.near_bytes_total),
        "model_words": bytes_in_words(plan.model_bytes_total),
        "left_out_bytes": left_out,
        "left_out_words": bytes_in_words(left_out),
        "everything_fits": everything_fits(plan),
    }


def heat_map(snapshot: Any) -> dict[str, Any]:
    """Residency (0 absent, 1 arriving, 2 resident) as base64 of one byte an expert, and how often each was used."""
    residency = snapshot.residency
    layers, experts = residency.shape
    return {
        "layers": layers,
        "experts": experts,
        "residency": base64.b64encode(residency.astype("uint8").tobytes()).decode("ascii"),
        "uses": snapshot.use_counts.ravel().tolist(),
        "resident": int((residency == 2).sum()),
        "total": layers * experts,
        "used": bool(snapshot.use_counts.any()),
    }


def series(samples: Sequence[Sample]) -> list[dict[str, float]]:
    """One entry a second of work: counts of activations and bytes over the link by kind."""
    return [
        {
            "hit": s.hits,
            "late": s.late,
            "miss": s.misses,
            "demand": s.bytes_demand + s.bytes_correction,
            "used": s.bytes_prefetch_used,
            "wasted": s.bytes_prefetch_wasted,
            "stall": round(min(s.stall_seconds / s.seconds, 1.0), 3) if s.seconds > 0 else 0.0,
            "seconds": round(s.seconds, 2),
        }
        for s in samples
    ]


def totals(stats: dict[str, Any]) -> dict[str, str]:
    """Sums since the model was loaded, in words."""
    demand = stats.get("bytes_demand", 0) + stats.get("bytes_correction", 0)
    return {
        "hit": f"{stats.get('hits', 0):,}",
        "late": f"{stats.get('late', 0):,}",
        "miss": f"{stats.get('misses', 0):,}",
        "demand": bytes_in_words(demand),
        "used": bytes_in_words(stats.get("bytes_prefetch_used", 0)),
        "wasted": bytes_in_words(stats.get("bytes_prefetch_wasted", 0)),
    }


def foresight(snapshot: Any) -> dict[str, Any] | None:
    """Recall by layer in percent, and in words whether prediction pays; None under a policy that predicts nothing."""
    found = snapshot.foresight
    if found is None:
        return None
    before_step, before_layer = found.recall_before_step, found.recall_before_layer
    layers = []
    if before_step is not None and before_layer is not None:
        layers = [
            {"foreseen": round(100 * early), "corrected": round(100 * max(late - early, 0))}
            for early, late in zip(before_step.tolist(), before_layer.tolist(), strict=True)
        ]
    stats = snapshot.stats.to_dict()
    return {
        "words": _pays(found),
        "source": found.source,
        "layers": layers,
        "foreseen": _mean_percent(before_step),
        "corrected": _mean_percent(before_layer),
        "cancelled": bytes_in_words(stats.get("bytes_prefetch_cancelled", 0)),
    }


def _pays(found: Any) -> str:
    if found.gain is None:
        return "On; whether it pays is measured while an answer is written."
    percent = f"{abs(100 * found.gain):.0f} %"
    if found.pays:
        return f"On: measured {percent} faster than without it."
    if found.gain > 0:
        return "Off: hardly anything is waited for, so there is nothing to win."
    return f"Off: measured {percent} slower than without it. It is tried again now and then."


def _mean_percent(recall: Any) -> str:
    return "" if recall is None else f"{100 * float(recall.mean()):.0f} %"


def _tile(label: str, value: str, unit: str, hint: str, kind: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "unit": unit if value != "–" else "", "hint": hint, "kind": kind}


def _speed_hint(snapshot: Any) -> str:
    emulation, chats = snapshot.emulation, snapshot.running
    together = f"all {chats} chats together" if chats > 1 else ""
    if emulation is None:
        return f"newest tokens, {together or 'of the last answers'}"
    return f"{emulation.label}, in its time: {emulation.dilation:.3g} x this machine's" + (together and f"; {together}")


def _first_token_hint(emulation: Any) -> str:
    return "from sending to the first word" + ("" if emulation is None else ", on this machine")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def _hit_share(recent: Sequence[Sample]) -> float | None:
    needed = sum(s.hits + s.late + s.misses for s in recent)
    return sum(s.hits for s in recent) / needed if needed else None


def _stall_share(recent: Sequence[Sample]) -> float | None:
    seconds = sum(s.seconds for s in recent)
    return min(sum(s.stall_seconds for s in recent) / seconds, 1.0) if seconds else None


def _needed(stats: dict[str, Any]) -> int:
    return stats.get("hits", 0) + stats.get("late", 0) + stats.get("misses", 0)


def _overall(stats: dict[str, Any], needed: int) -> str:
    if not needed:
        return "experts ready when needed"
    return f"of experts were ready; {100 * stats['hits'] / needed:.0f} % since loading"


def _split(count: int) -> tuple[str, str]:
    """Bytes as a number and its unit."""
    value, unit = bytes_in_words(count).split(" ") if count else ("0", "GB")
    return value, unit


def _step(count: int) -> int:
    return round(count / SHOWN_STEP_BYTES) * SHOWN_STEP_BYTES
