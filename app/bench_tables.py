"""Benchmark reports for people; `--json` prints them whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
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
            run.get("emulated", run["link"]),
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


def show_gpu(report: Report) -> None:
    """One line for each contender and budget, the emulated card named, then the ratios."""
    emulation = report["emulation"]
    table = Table("budget", "contender", "tokens/s", "hits", "waiting", "card memory", "first token after")
    for run in report["runs"]:
        hits, stall = run.get("hit_rate"), run.get("stall_seconds")
        table.add_row(
            run["budget"],
            run["contender"] if emulation is None else f"{run['contender']}, {run['emulated']}",
            _number(run["tokens_per_second"]),
            "" if hits is None else f"{hits:.0%}",
            "" if stall is None else f"{stall / max(run['decode_seconds'], 1e-9):.0%}",
            _size(run.get("near_bytes_total")),
            f"{run['prefill_seconds']:.2f} s" + ("" if emulation is None else " (here)"),
        )
    console = Console()
    console.print(table)
    for name, ratio in report["ratios"].items():
        console.print(f"{name}: {_number(ratio)}")
    _show_rest(console, report)


def show_prediction(report: Report) -> None:
    """Simulated speed over the best plain cache by budget and link, then the cells that were measured for real."""
    console = Console()
    links = list(dict.fromkeys(run["link"] for run in report["runs"]))
    grid = Table("budget", *links, title="simulated: prediction over the best plain cache")
    for budget in dict.fromkeys(run["budget"] for run in report["runs"]):
        grid.add_row(budget, *(f"{report['ratios'][f'simulated_{budget}_{link}']:.2f} x" for link in links))
    console.print(grid)
    _show_bounds(console, report["ratios"])
    real = Table("cell", "plain", "tokens/s", "speed", "pairs", "bytes", "stall", "predicting", "simulated/real")
    for cell in report["cells"]:
        ours = cell["real"]["predictive"]
        real.add_row(
            cell["cell"],
            cell["plain_policy"],
            f"{ours['tokens_per_second']:.1f}",
            f"{cell['speed_ratio']:.2f} x ({cell['speed_ratio_least']:.2f}-{cell['speed_ratio_most']:.2f})",
            str(cell["pairs"]),
            f"{cell['bytes_ratio']:.2f} x",
            f"{ours['stall_share']:.0%}",
            f"{ours['prediction_share']:.1%}",
            " / ".join(f"{name} {ratio:.2f}" for name, ratio in cell["simulated_over_real"].items()),
        )
    console.print(real)


def _show_bounds(console: Console, ratios: dict[str, float]) -> None:
    """What prediction would gain, knew it parts of the future, if that was simulated."""
    table = Table("cell", "knowing", "speed", "bytes", title="simulated: did prediction know what it guesses")
    for name, ratio in ratios.items():
        cell, _, known = name.removeprefix("simulated_").partition("_knowing_")
        if known and not cell.startswith("bytes_"):
            moved = ratios[f"simulated_bytes_{cell}_knowing_{known}"]
            table.add_row(cell.replace("_stall:", ", waiting "), known, f"{ratio:.2f} x", f"{moved:.2f} x")
    if table.row_count:
        console.print(table)


def show_predictors(report: Report) -> None:
    """A line for each predictor and token it speaks of; then what routers know during a step, by distance."""
    console = Console()
    ks = list(report["runs"][0]["rows"][0]["recall"])
    table = Table("predictor", "ahead", *(f"recall@{k}" for k in ks), f"precision@{ks[0]}", "ECE", "cost")
    for run in report["runs"]:
        for row in run["rows"]:
            table.add_row(
                Path(run["predictor"]).name,
                str(row["tokens_ahead"]),
                *(f"{row['recall'][k]:.3f}" for k in ks),
                f"{row['precision'][ks[0]]:.3f}",
                f"{row['calibration_error']:.3f}",
                "" if row["tokens_ahead"] else f"{run['median_microseconds']:.0f} us",
            )
    console.print(table)
    console.print(
        "ahead: tokens after the one whose id is known; recall@k: share of a token's experts among the k likeliest of "
        "their layer; ECE: expected calibration error; cost: of a token, predicting and being told."
    )
    told = [(run["predictor"], row) for run in report["runs"] for row in run.get("ahead", ())]
    if told:
        console.print(_ahead_table(told, ks[0]))


def _ahead_table(told: Iterable[tuple[str, Report]], k: str) -> Table:
    """Recall at k of the same layers, by how many layers before them it is asked."""
    table = Table("predictor", "layers ahead", "before the step", "router", "blended", title=f"recall@{k} in the step")
    for name, row in told:
        recalls = (f"{row[source]['recall'][k]:.3f}" for source in ("before", "router", "blend"))
        table.add_row(Path(name).name, str(row["distance"]), *recalls)
    return table


def show_precision(report: Report) -> None:
    """One line for each precision, then the ratios: speeds are comparable within one run alone."""
    texts = list(report["counted_tokens"])
    table = Table("precision", *(f"perplexity, {text}" for text in texts), "one expert", "slots", "hit", "tokens/s")
    for run in report["runs"]:
        table.add_row(
            run["precision"],
            *(f"{run['perplexity'][text]:.3f}" for text in texts),
            f"{run['expert_bytes'] / 1e6:.2f} MB",
            str(run.get("slots", "")),
            f"{run['hit_rate']:.0%}" if "hit_rate" in run else "",
            _number(run.get("tokens_per_second")),
        )
    console = Console()
    console.print(table)
    for name, ratio in report["ratios"].items():
        console.print(f"{name}: {_number(ratio)}")


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


def show_batch(report: dict[str, Any]) -> None:
    """A row for each budget, link, number of prompts at once and contender."""
    columns = ("budget", "link", "at once", "a pass", "tokens/s", "experts/pass", "experts/token", "hit", "MB/token")
    table = Table(*columns, "stall", "scheduler", "worst wait", "of the bound")
    for run in report["runs"]:
        table.add_row(
            run["budget"],
            run["link"],
            str(run["batch_size"]),
            _pass_in_words(run),
            f"{run['tokens_per_second']:.1f}",
            f"{run['experts_per_pass']:.0f}",
            f"{run['experts_per_token']:.1f}",
            f"{run['hit_rate']:.0%}",
            f"{run['bytes_per_token'] / 1e6:.1f}",
            f"{run['stall_share']:.0%}",
            f"{run['scheduling_share']:.1%}",
            f"{run['worst_wait_passes']} passes, {run['worst_wait_seconds']:.2f} s",
            f"{run['roofline_share']:.0%}" if "roofline_share" in run else "",
        )
    console = Console()
    console.print(table)
    if not report["identical_ids"]:
        console.print("Not every contender gave the same answers: near ties between tokens fell differently.")


def _pass_in_words(run: dict[str, Any]) -> str:
    if run["way"] == "apart":
        return "one chat"
    return "all" if run["group_size"] is None else f"{run['group_size']}, {run['scheduler']}"


def show_groups(report: dict[str, Any]) -> None:
    """A row for each pool, group size, budget and grouping."""
    table = Table("chats", "a pass", "budget", "policy", "grouping", "paths", "experts/token", "MB/token", "worst wait")
    for run in report["runs"]:
        table.add_row(
            str(run["pool"]),
            str(run["group_size"]),
            run["budget"],
            run["policy"],
            run["grouping"],
            run["paths"],
            f"{run['distinct_per_token']:.1f}",
            f"{run['bytes_per_token'] / 1e6:.1f}",
            f"{run['worst_wait_passes']} passes",
        )
    console = Console()
    console.print(table)
    for name, found in report["forecasts"].items():
        console.print(f"paths by {name}: recall {found['recall']:.0%}, {found['ms_per_token']:.2f} ms a token")


def show_spread(report: dict[str, Any]) -> None:
    """A row for each number of nodes, budget and spread: medians over the orders of the file."""
    columns = ("nodes", "at once", "budget", "policy", "spread", "MB/token", "hit", "each node's hit")
    table = Table(*columns, "bytes over round-robin's")
    cells: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in report["runs"]:
        cell = tuple(str(run[name]) for name in ("nodes", "at_once", "budget", "policy", "spread"))
        cells.setdefault(cell, []).append(run)
    for cell, runs in cells.items():
        hits = [node["hit_rate"] for run in runs for node in run["by_node"]]
        table.add_row(
            *cell,
            f"{_median(runs, 'bytes_per_token') / 1e6:.1f}",
            f"{_median(runs, 'hit_rate'):.1%}",
            f"{min(hits):.1%}-{max(hits):.1%}",
            _with_range(report["ratios"], "_".join(cell)),
        )
    Console().print(table)


def _median(runs: Iterable[Report], name: str) -> float:
    return median(run[name] for run in runs)


def _with_range(ratios: Mapping[str, float], name: str) -> str:
    if name not in ratios:
        return ""
    return f"{ratios[name]:.3f} ({ratios[name + '_least']:.3f}-{ratios[name + '_most']:.3f})"
