"""Benchmark reports for people; `--json` prints them whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

Report = Mapping[str, Any]


def show_decode(report: Report) -> None:
    """One line for each run, then how fast computing alone is: slow computing flatters efficiency."""
    table = Table("link", "policy", "budget", "tokens/s", "hit", "late", "miss", "stall", "bound", "efficiency")
    for run in report["runs"]:
        rates = [f"{run[name]:.0%}" for name in ("hit_rate", "late_rate", "miss_rate")]
        table.add_row(
            run["link"],
            run["policy"],
            run["budget"],
            f"{run['tokens_per_second']:.2f}",
            *rates,
            f"{run['stall_seconds'] / run['actual_seconds']:.0%}",
            f"{run['tokens'] / run['bound_seconds']:.2f}",
            f"{run['efficiency']:.0%}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"Everything resident: {_number(report['resident_tokens_per_second'])} tokens/s; stock transformers: "
        f"{_number(report['transformers_tokens_per_second'])} tokens/s "
        f"({_number(report['ratios']['resident_decode_over_transformers'])} x)."
    )
    _show_rest(console, report)


def show_peers(report: Report) -> None:
    """One line for each contender, then the ratios."""
    table = Table("what", "contender", "tokens/s", "first token after", "peak memory", "with page cache")
    for run in report["runs"]:
        table.add_row(
            run["what"],
            run["contender"],
            _number(run.get("tokens_per_second")),
            f"{run['prefill_seconds']:.2f} s",
            _size(run.get("peak_rss_bytes")),
            _size(run.get("peak_with_page_cache_bytes")),
        )
    console = Console()
    console.print(table)
    for name, ratio in report["ratios"].items():
        console.print(f"{name}: {_number(ratio)}")
    _show_rest(console, report)


def show_predictors(report: Report) -> None:
    """A line for each predictor and token it speaks of; then what routers know during a step, by distance."""
    console = Console()
    table = Table("predictor", "tokens ahead", "recall", "precision", "calibration error", "a token's cost")
    for run in report["runs"]:
        for row in run["rows"]:
            cost = "" if row["tokens_ahead"] else f"{run['median_microseconds']:.0f} us"
            ece = f"{row['calibration_error']:.3f}"
            table.add_row(
                run["predictor"], str(row["tokens_ahead"]), _at(row["recall"]), _at(row["precision"]), ece, cost
            )
    console.print(table)
    console.print("Recall and precision of the k likeliest experts of a layer, counted for each token.")
    told = [(run["predictor"], row) for run in report["runs"] for row in run.get("ahead", ())]
    if not told:
        return
    table = Table("predictor", "layers ahead", "before the step", "router", "blended")
    for name, row in told:
        table.add_row(name, str(row["distance"]), *(_at(row[one]["recall"]) for one in ("before", "router", "blend")))
    console.print(table)


def _at(by_k: Mapping[str, float]) -> str:
    return ", ".join(f"@{k} {value:.3f}" for k, value in by_k.items())


def show_facts(report: Report) -> None:
    """Name and value, one a line."""
    table = Table("measured", "value")
    for name, value in report.items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    Console().print(table)


def _show_rest(console: Console, report: Report) -> None:
    same = "wrote the same tokens" if report["identical_ids"] else "DID NOT write the same tokens"
    console.print(f"Given the same prompt, all contenders {same}.")
    for note in report["notes"]:
        console.print(note, markup=False)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _size(value: int | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f} GB"
