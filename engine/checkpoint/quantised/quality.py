"""What a lossy precision costs in quality: kept beside the copy, shipped for the built-in model, or not measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.checkpoint.builtin import builtin_path
from engine.checkpoint.quantised.formats import FORMAT_VERSION
from engine.checkpoint.quantised.index import QuantisedIndex

QUALITY_NAME = "quality.json"
SHIPPED_DIR = Path(__file__).resolve().parents[3] / "assets" / "precision"


@dataclass(frozen=True)
class MeasuredQuality:
    """Perplexity at the precision over that of the native experts, and how many tokens it was measured on, both by
    the name of the held-out text."""

    perplexity_over_native: dict[str, float]
    counted_tokens: dict[str, int]


def measured_quality(index: QuantisedIndex) -> MeasuredQuality | None:
    """What was measured of this copy on this machine, else what is shipped for the built-in model, else None."""
    shipped = index.source == builtin_path().resolve()
    candidates = [index.folder / QUALITY_NAME, *([shipped_path(index.source, index.precision)] if shipped else [])]
    return next((_read(path) for path in candidates if path.is_file()), None)


def record_quality(index: QuantisedIndex, quality: MeasuredQuality) -> None:
    """Keeps it with the copy, which it goes with."""
    text = json.dumps(asdict(quality), indent=2) + "\n"
    unfinished = index.folder / f".{QUALITY_NAME}"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(index.folder / QUALITY_NAME)


def shipped_path(source: Path, precision: str) -> Path:
    """Where the figures of a built-in model are shipped: a copy of what `record_quality` wrote."""
    return SHIPPED_DIR / f"{source.name}-{precision}-v{FORMAT_VERSION}.json"


def lossy_sentence(index: QuantisedIndex) -> str:
    """For the plan and the panel."""
    size = f"{index.total_expert_bytes / index.native.total_expert_bytes:.0%} of their own size"
    start = f"Experts are held as {index.precision} (lossy), {size}"
    quality = measured_quality(index)
    if quality is None:
        return f"{start}; what that costs in perplexity was not measured for this model (`bench precision` does)."
    return f"{start}; perplexity changes by {_changes(quality.perplexity_over_native)}, as measured."


def _changes(ratios: Mapping[str, float]) -> str:
    return " and ".join(f"{ratio - 1:+.1%} on {name}" for name, ratio in ratios.items())


def _read(path: Path) -> MeasuredQuality:
    facts = json.loads(path.read_text(encoding="utf-8"))
    return MeasuredQuality(facts["perplexity_over_native"], facts["counted_tokens"])
