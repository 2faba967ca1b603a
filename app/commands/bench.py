"""`bench`: side-by-side measurements on this machine."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.options import PromptsFile, listed
from app.terminal import AsJson, command, present

bench = typer.Typer(help="Side-by-side measurements on this machine.", no_args_is_help=True)

Model = Annotated[str, typer.Option(help='"demo", a name that `models` lists, or a checkpoint\'s folder.')]
Repeats = Annotated[int, typer.Option(min=1, help="How often everything is measured; medians are reported.")]


@bench.command("model")
@command
def bench_model(as_json: AsJson = False) -> None:
    """How good the built-in model is beside the dense model it was made from."""
    from app.bench_tables import show_facts

    def work(on_progress: Any) -> dict[str, Any]:
        from engine.lab.bench_model import run
        from engine.lab.report import make_report

        facts = run(on_progress)
        return make_report([facts], facts["perplexity_moe_over_dense"]) | facts

    present(work, lambda report: show_facts(report["runs"][0]), as_json)


@bench.command("start")
@command
def bench_start(repeats: Repeats = 3, as_json: AsJson = False) -> None:
    """How long it takes from the command to the page, and to a chat that can be used."""
    from app.bench_tables import show_facts

    def work(on_progress: Any) -> dict[str, Any]:
        from engine.lab.bench_start import run

        return run(repeats, on_progress)

    present(work, lambda report: show_facts(report["runs"][0]), as_json)


@bench.command("larger")
@command
def bench_larger(
    model: Model = "demo",
    times: Annotated[int, typer.Option(min=1, help="So many times as wide its experts become, with zeros.")] = 3,
    memory: Annotated[str, typer.Option(help="All that the process may use, page cache included.")] = "2GiB",
    budget: Annotated[str, typer.Option(help='As in chat: "auto", "25%" or "1GiB".')] = "auto",
    policy: Annotated[str, typer.Option(help="Who leaves the cache.")] = "lru-per-layer",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 16,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the model it makes where it is.")] = False,
    as_json: AsJson = False,
) -> None:
    """A model larger than the memory its process may use: does it answer as it should and keep to its plan?"""
    from app.bench_tables import show_facts

    def work(on_progress: Any) -> dict[str, Any]:
        from engine.lab.bench_larger import LargerSettings, run_bench_larger

        settings = LargerSettings(
            model=model, times=times, memory=memory, budget=budget, policy=policy, tokens=tokens, keep=keep
        )
        return run_bench_larger(settings, on_progress)

    present(work, lambda report: show_facts(report["runs"][0]), as_json)


@bench.command("batch")
@command
def bench_batch(
    model: Model = "demo",
    sizes: Annotated[str, typer.Option(help="Prompts at once, with commas.")] = "1,4,8,16,32",
    budget: Annotated[str, typer.Option(help="Shares or sizes, with commas.")] = "100%,25%",
    link: Annotated[str, typer.Option(help="As in chat, with commas.")] = "emulated:2.5GBps",
    policy: Annotated[str, typer.Option(help="Who leaves the cache.")] = "lru-per-layer",
    schedulers: Annotated[
        str, typer.Option(help="Ways to group chats into passes, with commas: off, paper, cache-aware, waves, auto.")
    ] = "waves,off,paper,cache-aware",
    group_size: Annotated[
        int | None, typer.Option(min=1, help="Most tokens in a pass of a group.", show_default="half of the chats")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 16,
    repeats: Repeats = 2,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Group recorded conversations in place of answering: bytes, no speed.")
    ] = False,
    traces: Annotated[
        list[Path] | None, typer.Option(help="With --simulate, a file of recorded routing; may be given again.")
    ] = None,
    group_sizes: Annotated[str, typer.Option(help="With --simulate, most tokens in a pass, with commas.")] = "4,8,16",
    nodes: Annotated[
        str | None,
        typer.Option(
            help="With --simulate, spread recorded prompts over so many machines, --sizes at once on each, in turn "
            "and by predicted routes; with commas."
        ),
    ] = None,
    all_conversations: Annotated[
        bool, typer.Option("--all", help="With --simulate, also conversations that predictors were trained on.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Several prompts at once: chat after chat, in one pass, and in groups of half as many by each token scheduler."""
    from app.bench_tables import show_batch, show_groups, show_spread

    at_once, most = _numbers(sizes, "--sizes"), _numbers(group_sizes, "--group-sizes")
    machines = None if nodes is None else _numbers(nodes, "--nodes")
    if machines and not simulate:
        raise typer.BadParameter("is about recorded conversations; use it with --simulate.", param_hint="--nodes")

    def spread(on_progress: Any) -> dict[str, Any]:
        from app.batch.nodes.simulated_spread import SpreadSettings, simulate_recorded_spread
        from engine.lab.simulation.simulate_traces import read_shares

        settings = SpreadSettings(machines or (), at_once, read_shares(budget), listed(policy))
        return simulate_recorded_spread(traces or [], model, settings, all_conversations, on_progress)

    def simulated(on_progress: Any) -> dict[str, Any]:
        from engine.lab.grouping.simulate_groups import GroupSettings, simulate_recorded
        from engine.lab.simulation.simulate_traces import read_shares

        settings = GroupSettings(
            pools=at_once,
            sizes=most,
            shares=read_shares(budget),
            policies=listed(policy),
        )
        return simulate_recorded(traces or [], model, settings, all_conversations, on_progress)

    def work(on_progress: Any) -> dict[str, Any]:
        from engine.lab.bench_batch import BatchBenchSettings, run_bench_batch

        settings = BatchBenchSettings(
            model=model,
            sizes=at_once,
            budgets=listed(budget),
            links=listed(link),
            policy=policy,
            schedulers=listed(schedulers),
            group_size=group_size,
            tokens=tokens,
            repeats=repeats,
        )
        return run_bench_batch(settings, on_progress)

    if machines:
        present(spread, show_spread, as_json)
    elif simulate:
        present(simulated, show_groups, as_json)
    else:
        present(work, show_batch, as_json)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """Of an option that takes several. Raises BadParameter."""
    found = listed(text)
    if not found or not all(number.isdecimal() and int(number) for number in found):
        raise typer.BadParameter(f"{text!r} is not a list of numbers of 1 or more.", param_hint=option)
    return tuple(map(int, found))


@bench.command("decode")
@command
def bench_decode(
    model: Model = "demo",
    budget: Annotated[str, typer.Option(help="Shares or sizes, with commas.")] = "15%,25%,35%,45%,60%",
    policies: Annotated[
        str, typer.Option(help="Policies, with commas.")
    ] = "lru,lru-per-layer,lfu,lfu-per-layer,predictive",
    link: Annotated[
        str,
        typer.Option(
            help="disk (read past the page cache), disk:buffered, emulated:2.5GBps or emulated:4060, with commas."
        ),
    ] = "disk",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 33,
    repeats: Repeats = 2,
    prompts: PromptsFile = None,
    take: Annotated[int | None, typer.Option(min=1, help="Use only the first so many prompts.")] = None,
    no_stock: Annotated[bool, typer.Option("--no-stock", help="Leave stock transformers out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Decoding speed by budget, policy and link, beside the least time each budget allows."""
    from app.bench_tables import show_decode
    from engine.lab.prompts import read_prompts

    chats = tuple(read_prompts(prompts, take or (2 if prompts is None else None)))

    def work(on_progress: Any) -> dict[str, Any]:
        from engine.lab.bench_decode import DecodeSettings, run_bench_decode

        settings = DecodeSettings(
            model=model,
            budgets=listed(budget),
            policies=listed(policies),
            links=listed(link),
            tokens=tokens,
            repeats=repeats,
            prompts=chats,
            with_stock=not no_stock,
        )
        return run_bench_decode(settings, on_progress)

    present(work, show_decode, as_json)


@bench.command("peers")
@command
def bench_peers(
    model: Model = "demo",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer with everything resident.")] = 48,
    repeats: Repeats = 3,
    prefill_tokens: Annotated[int, typer.Option(min=2, help="Length of the long prompt.")] = 1000,
    disk_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer from the cold disk.")] = 8,
    disk_repeats: Annotated[int, typer.Option(min=1, help="Rounds from the cold disk.")] = 3,
    budget: Annotated[str, typer.Option(help="This engine's budget beside disk offload.")] = "25%",
    memory_limit: Annotated[
        str, typer.Option(help="Limit on both disk contenders, page cache included: auto or a size.")
    ] = "auto",
    prompts: PromptsFile = None,
    take: Annotated[int | None, typer.Option(min=1, help="Use only the first so many prompts.")] = None,
    no_disk: Annotated[bool, typer.Option("--no-disk", help="Leave disk offload out.")] = False,
    no_token_time: Annotated[bool, typer.Option("--no-token-time", help="Do not take a token's time apart.")] = False,
    as_json: AsJson = False,
) -> None:
    """This engine beside plain transformers and accelerate's disk offload, on the same weights and prompts."""
    from app.bench_tables import show_peers
    from engine.lab.prompts import read_prompts

    chats = tuple(read_prompts(prompts, take or (1 if prompts is None else None)))

    def work(on_progress: Any) -> dict[str, Any]:
        from engine.lab.bench_peers import PeersSettings, run_bench_peers

        settings = PeersSettings(
            model=model,
            tokens=tokens,
            repeats=repeats,
            prefill_tokens=prefill_tokens,
            disk_tokens=disk_tokens,
            disk_repeats=disk_repeats,
            budget=budget,
            memory_limit=memory_limit,
            prompts=chats,
            with_disk=not no_disk,
            with_token_time=not no_token_time,
        )
        return run_bench_peers(settings, on_progress)

    present(work, show_peers, as_json)


@bench.command("gpu")
@command
def bench_gpu(
    model: Model = "demo",
    budget: Annotated[str, typer.Option(help="Budgets, with commas.")] = "auto,25%,50%",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    offload_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each of accelerate's answers.")] = 16,
    repeats: Repeats = 3,
    device: Annotated[str, typer.Option(help="cuda, or a card by number such as cuda:1.")] = "cuda",
    emulate: Annotated[
        str | None, typer.Option(help="A card that is not here, such as 4060: this engine alone, in its time.")
    ] = None,
    gguf: Annotated[
        Path | None, typer.Option(help="The same model as a GGUF file, for llama.cpp where llama-server is installed.")
    ] = None,
    prompts: PromptsFile = None,
    take: Annotated[int | None, typer.Option(min=1, help="Use only the first so many prompts.")] = None,
    as_json: AsJson = False,
) -> None:
    """On a card: this engine beside stock transformers, accelerate's offload and llama.cpp, budget by budget."""
    from app.bench_tables import show_gpu
    from engine.lab.prompts import read_prompts

    chats = tuple(read_prompts(prompts, take or (1 if prompts is None else None)))

    def work(on_progress: Any) -> dict[str, Any]:
        from engine.lab.bench_gpu import GpuBenchSettings, run_bench_gpu

        settings = GpuBenchSettings(
            model=model,
            budgets=listed(budget),
            tokens=tokens,
            offload_tokens=offload_tokens,
            repeats=repeats,
            device=device,
            emulate=emulate,
            gguf=None if gguf is None else str(gguf),
            prompts=chats,
        )
        return run_bench_gpu(settings, on_progress)

    present(work, show_gpu, as_json)


@bench.command("prediction")
@command
def bench_prediction(
    model: Model = "demo",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 49,
    prompts: PromptsFile = None,
    take: Annotated[int | None, typer.Option(min=2, help="Use only the first so many prompts.")] = None,
    budget: Annotated[str | None, typer.Option(help="Only these shares, with commas; all cells then for real.")] = None,
    waiting: Annotated[
        str | None, typer.Option(help="Only links on which the best plain cache waits so long, with commas.")
    ] = None,
    no_real: Annotated[bool, typer.Option("--no-real", help="Simulate only.")] = False,
    bounds: Annotated[
        bool, typer.Option("--bounds", help="Simulate also what prediction would gain, knew it parts of the future.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prediction beside the best plain cache: budgets by links on a virtual clock, and five of these for real."""
    from app.bench_tables import show_prediction
    from engine.lab.prompts import read_prompts

    chats = tuple(read_prompts(prompts, take))

    def work(on_progress: Any) -> dict[str, Any]:
        from engine.lab.bench_prediction import PredictionSettings, run_bench_prediction
        from engine.lab.simulation.simulate_traces import read_shares

        settings = PredictionSettings(model=model, tokens=tokens, prompts=chats, bounds=bounds)
        if budget is not None or waiting is not None:
            shares = settings.shares if budget is None else read_shares(budget)
            stalls = settings.stalls if waiting is None else read_shares(waiting)
            settings = replace(settings, shares=shares, stalls=stalls, cells=tuple(itertools.product(shares, stalls)))
        return run_bench_prediction(replace(settings, cells=()) if no_real else settings, on_progress)

    present(work, show_prediction, as_json)


@bench.command("precision")
@command
def bench_precision(
    model: Model = "demo",
    budget: Annotated[str, typer.Option(help="What native experts get; the others get the same bytes.")] = "25%",
    link: Annotated[str, typer.Option(help="disk (read past the page cache) or disk:buffered.")] = "disk",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 33,
    repeats: Annotated[int, typer.Option(min=0, help="Rounds of decoding; 0 measures perplexity alone.")] = 3,
    every: Annotated[int, typer.Option(min=1, help="Read one in so many of the held-out passages.")] = 1,
    prompts: PromptsFile = None,
    take: Annotated[int | None, typer.Option(min=1, help="Use only the first so many prompts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity, bytes and decoding speed with native, int8 and NF4 experts."""
    from app.bench_tables import show_precision
    from engine.lab.prompts import read_prompts

    chats = tuple(read_prompts(prompts, take or (2 if prompts is None else None)))

    def work(on_progress: Any) -> dict[str, Any]:
        from engine.lab.bench_precision import PrecisionSettings, run_bench_precision

        settings = PrecisionSettings(model, budget, link, tokens, repeats, every, chats)
        return run_bench_precision(settings, on_progress)

    present(work, show_precision, as_json)


@bench.command("predictor")
@command
def bench_predictor(
    traces: Annotated[list[Path], typer.Option(help="A file of recorded routing; may be given again.")],
    predictors: Annotated[
        str, typer.Option(help="none, previous, table, oracle or files of trained ones, with commas.")
    ] = "none,previous,table,oracle",
    horizon: Annotated[int, typer.Option(min=1, help="Tokens the untrained ones predict, the known one included.")] = 3,
    prompts_too: Annotated[bool, typer.Option("--prompts-too", help="Count prompts' tokens too.")] = False,
    all_conversations: Annotated[
        bool, typer.Option("--all", help="All conversations, not only those that nothing was trained on.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recall, precision, calibration and cost of predictors of routing, on conversations they have not seen."""
    from app.bench_tables import show_predictors

    def work(on_progress: Any) -> dict[str, Any]:
        from engine.lab.bench_predictor import PredictorBench, run_bench_predictor

        settings = PredictorBench(tuple(traces), listed(predictors), horizon, prompts_too, all_conversations)
        return run_bench_predictor(settings, on_progress)

    present(work, show_predictors, as_json)
