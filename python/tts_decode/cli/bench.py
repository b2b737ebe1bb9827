"""`tts-decode bench`: measures attention, decoding and searches on this machine, compared with its limits."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tts_kernels import _core

from ..bench import plots
from ..bench.attention import CPU_TREES, AttentionTimes, measure_attention
from ..bench.decode import measure_decode
from ..bench.search import PARTS, SearchTimes, measure_search
from ..bench.timing import Quartiles
from ..bench.trees import Heads, Tree
from ..core.params import SamplingParams
from ..cost.forward import Machine
from ..default_model import DEFAULT_MODEL
from ..extras import install_command
from ..model.loading import resolve_dtype
from ..tasks import default_tasks
from . import model_options as model_opt
from . import options as opt
from . import sampling_options as sampling_opt
from .display import Display, Screen, mib, print_json, short
from .errors import UsageError, at_least, usage_errors
from .filled import filled
from .session import Session, open_session
from .strategy_options import get_strategy

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure attention, decoding and searches on this machine (CPU), compared with its limits.\n\n"
    "Figures are medians over rounds, each of which times everything; run it on an idle machine.",
)

Threads = Annotated[int | None, typer.Option(help="Number of threads. Default: torch's, one per core.")]
Rounds = Annotated[int, typer.Option(help="How many times to measure everything.")]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw a plot: .svg or .png file.", rich_help_panel="Output"),
]


@bench.command("attention")
@filled
def attention(
    tree: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TREE]...",
            help="Nodes of each level from the root, then tokens of each of their nodes: 1,32/2048,64 is 32 "
            "branches of 64 tokens below a prompt of 2,048. Default: a suite.",
            show_default=False,
        ),
    ] = None,
    heads: Annotated[str, typer.Option(help="Query heads/KV heads/head_dim.")] = "32/8/128",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: what the CPU computes fast.")
    ] = "auto",
    threads: Threads = None,
    rounds: Rounds = 9,
    json_output: opt.Json = False,
    plot: Plot = None,
) -> None:
    """Measure one layer's attention over trees of branches, with one query per leaf.

    The roofline is max(bytes / bandwidth, flops / peak), with both rates measured in the same rounds: each
    key and value is read once, however many branches share it. KV that fits into the cache may exceed it. The
    plan, which a step makes once for all layers, is timed separately. For comparison, torch's attention runs
    over a cache with a copy per branch, if that fits into 2 GiB: the last column says how many times longer
    it takes.

    Examples:

      tts-decode bench attention 1,32/2048,64 --heads 9/3/64

      tts-decode bench attention --dtype bfloat16 --plot roofline.svg
    """
    _check(plot, threads)
    at_least(1, rounds=rounds)
    with usage_errors({"heads": "--heads", "tree": "TREE"}):
        shape = Heads.parse(heads)
        trees = [Tree.parse(text) for text in tree] if tree else CPU_TREES
        kind = resolve_dtype(dtype, torch.device("cpu"))
    if kind not in (torch.float32, torch.bfloat16):
        raise UsageError(f"--dtype: got {dtype}, expected float32, bfloat16 or auto on a CPU")
    results: dict[Tree, AttentionTimes] = {}
    with Display() as display:
        for number, each in enumerate(trees, start=1):
            display.stage(
                f"tree {number} of {len(trees)}: {each}, {mib(each.kv_bytes(shape, kind.itemsize))} MiB"
            )
            results[each] = measure_attention(each, shape, kind, rounds)
    if plot is not None:
        shares = {str(t): {r.bound: r.floor / r.attention.median} for t, r in results.items()}
        plots.bars(plot, shares, "% of the roofline")
    about = _about() | {"heads": heads, "dtype": _name(kind), "rounds": rounds}
    if json_output:
        rows = [_attention_json(t, r) for t, r in results.items()]
        print_json(about | {"trees": rows})
        return
    table = _table("tree", "KV MiB", "ms", "GB/s", "GFLOP/s", "roofline", "plan ms", "torch")
    for t, r in results.items():
        seconds = r.attention.median
        table.add_row(
            str(t),
            mib(t.kv_bytes(shape, kind.itemsize)),
            _spread(r.attention),
            short(r.num_bytes / seconds / 1e9),
            short(r.flops / seconds / 1e9),
            f"{r.floor / seconds:.0%} {r.bound}",
            short(r.plan.median * 1e3),
            f"{r.sdpa.median / seconds:.1f}x" if r.sdpa else "",
        )
    _print(f"one layer, {heads}, {_name(kind)}", [table], list(results.values())[-1].machine)


@bench.command("decode")
@filled
def decode(
    prompt: Annotated[int, typer.Option("--prompt", "-p", help="Tokens of the prompt.")] = 2048,
    branches: Annotated[str, typer.Option("--branches", "-n", help="Numbers of branches.")] = "1,8,32,64",
    tokens: Annotated[int, typer.Option(help="Tokens that each branch generates.")] = 32,
    temperature: sampling_opt.Temperature = 0.8,
    model: model_opt.Model = DEFAULT_MODEL,
    dtype: model_opt.Dtype = "auto",
    weights: model_opt.Weights = "auto",
    kv_mib: model_opt.KvMib = None,
    kv_dtype: model_opt.KvDtype = "auto",
    threads: Threads = None,
    rounds: Rounds = 3,
    json_output: opt.Json = False,
    plot: Plot = None,
) -> None:
    """Measure the prefill of a prompt, then decode steps of branches that share it.

    The roofline of a step reads all weights and each shared page once, at rates measured in the same rounds;
    in each part of the step reading and computing overlap. torch's profiler, in a separate run, tells where
    the time goes.

    Examples:

      tts-decode bench decode

      tts-decode bench decode --prompt 512 --branches 1,8,64 --json
    """
    _check(plot, threads)
    at_least(1, rounds=rounds, prompt=prompt, tokens=tokens)
    counts = branches.split(",")
    if not all(count.strip().isdecimal() and int(count) for count in counts):
        raise UsageError(f"--branches: got {branches!r}, expected numbers with commas such as 1,8,64")
    widths = sorted({int(count) for count in counts})
    with open_session(model, dtype, "cpu", kv_mib, kv_dtype, weights=weights) as session, usage_errors():
        # The first token comes from the prompt's own forward.
        model_opt.check_positions("--prompt", prompt, tokens + 1, session.model.config)
        decoder = session.decoder()
        prefill, machine, results = measure_decode(
            decoder,
            decoder.runtime.engine.shape,
            prompt=prompt,
            branches=widths,
            tokens=tokens,
            rounds=rounds,
            temperature=temperature,
            on_stage=session.display.stage,
        )
        ran = session.describe()
    if plot is not None:
        curves = {
            "measured": [r.tokens_per_second for r in results],
            "roofline": [r.branches / r.floor for r in results],
        }
        plots.lines(plot, widths, curves, ("branches", "tokens/s"))
    if json_output:
        rows = [
            {
                "branches": r.branches,
                "tokens_per_second": r.tokens_per_second,
                "step_seconds": r.step._asdict(),
                "roofline_seconds": r.floor,
                "kv_bytes": r.kv_bytes,
                "shares": r.shares,
            }
            for r in results
        ]
        told = {"prompt": prompt, "tokens": tokens, "rounds": rounds, "prefill_seconds": prefill._asdict()}
        print_json(_about() | ran | told | {"machine": vars(machine), "decode": rows})
        return
    table = _table("branches", "tokens/s", "ms a step", "of roofline", "KV MiB")
    for r in results:
        table.add_row(
            f"{r.branches:,}",
            short(r.tokens_per_second),
            _spread(r.step),
            f"{r.floor / r.step.median:.0%}",
            mib(r.kv_bytes),
        )
    parts = _table("share of a step, branches:", *(f"{r.branches:,}" for r in results))
    for part in results[0].shares:
        parts.add_row(part, *(f"{r.shares[part]:.1%}" for r in results))
    speed = short(prompt / prefill.median)
    _print(
        f"{ran['model']}, {ran['dtype']}: a prompt of {prompt:,} tokens in {prefill.median:.2f} s "
        f"({speed} tokens/s), then {tokens} tokens a branch",
        [table, parts],
        machine,
    )


@bench.command("search")
@filled
def search(
    strategy: Annotated[
        list[str],
        typer.Argument(
            metavar="[STRATEGY]...", help="Names of strategies. Default: four of them.", show_default=False
        ),
    ] = ["best_of_n", "beam_search", "rebase", "ets"],  # noqa: B006
    n: Annotated[int, typer.Option("--branches", "-n", help="Width: a strategy's first option.")] = 64,
    limit: Annotated[int, typer.Option(help="Number of problems, one at a time.")] = 3,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    max_step_tokens: Annotated[int, typer.Option(help="Longest step, in tokens.")] = 32,
    temperature: sampling_opt.Temperature = 0.8,
    model: model_opt.Model = DEFAULT_MODEL,
    dtype: model_opt.Dtype = "auto",
    weights: model_opt.Weights = "auto",
    kv_mib: model_opt.KvMib = None,
    kv_dtype: model_opt.KvDtype = "auto",
    threads: Threads = None,
    json_output: opt.Json = False,
    plot: Plot = None,
) -> None:
    """Measure whole searches and show where their time goes.

    "model" is the forward, "sampling" the draw of the next tokens, "engine" the decoder's other work (plan,
    pages, requests), "strategy" everything else: selection, scores, records.

    Examples:

      tts-decode bench search rebase ets -n 64

      tts-decode bench search best_of_n -n 16 --plot where.svg
    """
    _check(plot, threads)
    at_least(1, limit=limit, branches=n)
    strategies = [get_strategy(name, "STRATEGY") for name in strategy]
    with usage_errors():
        sampling = SamplingParams(
            temperature, max_tokens=max_tokens, max_step_tokens=max_step_tokens, stop=("\n",)
        )
    tasks = default_tasks(limit)
    results = {}
    with open_session(model, dtype, "cpu", kv_mib, kv_dtype, weights=weights) as session:
        for chosen in strategies:
            session.display.stage(f"{chosen.name}, warming up")
            warm = SamplingParams(temperature, max_tokens=8, max_step_tokens=8, stop=("\n",))
            measure_search(session.decoder(), chosen, tasks[:1], n=n, sampling=warm)
            session.display.stage(f"{chosen.name}, {len(tasks)} problems")
            watch = partial(_watch, session, chosen.name, len(tasks))
            results[chosen.name] = measure_search(
                session.decoder(), chosen, tasks, n=n, sampling=sampling, on_task=watch
            )
        ran = session.describe()
    shares = {name: times.shares() for name, times in results.items()}
    if plot is not None:
        plots.bars(plot, shares, "% of the time")
    if json_output:
        rows = [_search_json(name, times) for name, times in results.items()]
        print_json(_about() | ran | {"n": n, "problems": len(tasks), "searches": rows})
        return
    table = _table("strategy", "tokens/s", "ms a step", "KV MiB", *PARTS)
    for name, times in results.items():
        table.add_row(
            name,
            short(times.tokens / times.wall),
            short(times.wall / times.steps * 1e3),
            mib(times.peak_bytes),
            *(f"{share:.1%}" for share in shares[name].values()),
        )
    _print(f"{ran['model']}, {ran['dtype']}: {len(tasks)} problem{'s' * (len(tasks) > 1)}, n = {n}", [table])


def _watch(session: Session, name: str, tasks: int, done: int) -> None:
    session.display.update(f"{name} {done}/{tasks}")


def _check(plot: Path | None, threads: int | None) -> None:
    """Refuses bad options before anything is measured, and sets the threads."""
    at_least(1, threads=threads)
    if plot is not None:
        if plot.suffix not in (".svg", ".png"):
            raise UsageError(f"--plot: got {plot}, expected a .svg or .png file")
        if not plot.parent.is_dir():
            raise UsageError(f"--plot: there is no folder {plot.parent}")
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError(f"--plot: needs the package matplotlib; run: {install_command('matplotlib')}")
    if threads is not None:
        torch.set_num_threads(threads)


def _attention_json(tree: Tree, times: AttentionTimes) -> dict[str, Any]:
    return {
        "tree": str(tree),
        "attention_seconds": times.attention._asdict(),
        "plan_seconds": times.plan._asdict(),
        "sdpa_seconds": times.sdpa._asdict() if times.sdpa else None,
        "machine": vars(times.machine),
        "bytes": times.num_bytes,
        "flops": times.flops,
        "roofline_seconds": times.floor,
        "bound": times.bound,
    }


def _search_json(name: str, times: SearchTimes) -> dict[str, Any]:
    seconds = {part: getattr(times, part) for part in ("wall", *PARTS)}
    counts = {count: getattr(times, count) for count in ("steps", "tokens", "peak_bytes")}
    return {"strategy": name, "seconds": seconds, **counts}


def _about() -> dict[str, Any]:
    return {"isa": _core.cpu_isa(), "threads": torch.get_num_threads()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _spread(times: Quartiles) -> str:
    """Returns milliseconds: the median and half the interquartile range."""
    return f"{short(times.median * 1e3)} ± {(times.high - times.low) / 2 * 1e3:.2g}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _print(title: str, tables: list[Table], machine: Machine | None = None) -> None:
    screen = Screen()
    about = _about()
    screen.print(f"{title}; {about['isa']}, threads: {about['threads']}")
    for table in tables:
        screen.print(table)
    if machine is not None:
        screen.note(
            f"Measured in the same rounds: {short(machine.bandwidth / 1e9)} GB/s read, "
            f"{short(machine.flops / 1e9)} GFLOP/s in torch's matrix product."
        )
