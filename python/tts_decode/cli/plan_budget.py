"""`tts-decode plan-budget`: estimates the cost of a search, dense and at several sparse budgets."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tts_kernels.device import checked_device

from ..bench.machine import measure_machine
from ..cost.forward import Machine, ModelShape
from ..cost.search import SearchCost, SparseBudget, search_cost
from ..default_model import DEFAULT_MODEL
from ..model.loading import load_config, resolve_dtype
from ..model.shape import shape_of_config
from ..model.sparse import SparseConfig
from . import model_options as model_opt
from . import options as opt
from .display import Display, Screen, print_json, short
from .errors import UsageError, at_least, usage_errors
from .filled import filled

_PAGE_SIZE = 16
_FRACTIONS = (2, 4, 8, 16, 32)
_LEAST_PAGES = SparseConfig().min_pages  # --sparse raises a share to it
_AS_CHEAP = 1.01  # costs within this factor count as equal: the plan that reads more pages then wins

_MACHINE = "Machine"


class Plan(NamedTuple):
    """A row of the table. pages: budget of a query for each KV head, all of the prompt's when dense."""

    name: str
    pages: int
    cost: SearchCost


@filled
def plan_budget(
    context: Annotated[int, typer.Option("--context", "-c", help="Tokens of the prompt.")] = 4096,
    branches: Annotated[int, typer.Option("--branches", "-n", help="Branches that grow from it.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens that each branch generates.")] = 512,
    summaries: Annotated[str, typer.Option(help="Page summaries: mean, minmax or quarters.")] = "mean",
    share: Annotated[
        str,
        typer.Option(help="Shared pages chosen by each branch, or once for the whole tree: branch, tree."),
    ] = "branch",
    dense_layers: Annotated[int, typer.Option(help="First layers that stay dense.")] = 2,
    model: model_opt.Model = DEFAULT_MODEL,
    dtype: model_opt.Dtype = "auto",
    device: model_opt.Device = "cpu",
    flops: Annotated[
        float | None,
        typer.Option(help="Flops a second. Default: measured here.", rich_help_panel=_MACHINE),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(help="Bytes read a second. Default: measured here.", rich_help_panel=_MACHINE),
    ] = None,
    json_output: opt.Json = False,
) -> None:
    """Say what a search would cost with dense and with sparse attention, and which budget costs least.

    Reads the model's config, not its weights. A cost in eFLOPs is flops + I * bytes (Kinetics), where I is
    the number of flops that the machine does while it reads a byte. Times assume the machine's peak rates,
    which it does not reach; compare their ratios. Accuracy is not in the table.

    Examples:

      tts-decode plan-budget --context 8000 --branches 16

      tts-decode plan-budget -m ./Qwen3-8B --dtype bfloat16 -c 32768 -n 64

      tts-decode plan-budget --flops 989e12 --bandwidth 3.35e12 --json
    """
    at_least(1, context=context, branches=branches)
    at_least(2, tokens=tokens)  # the first comes from the prompt's forward
    for flag, rate in (("--flops", flops), ("--bandwidth", bandwidth)):
        if rate is not None and not 0 < rate < float("inf"):
            raise UsageError(f"{flag}: got {rate}, expected a positive number a second")
    for flag, text, known in (
        ("--share", share, ("branch", "tree")),
        ("--summaries", summaries, ("mean", "minmax", "quarters")),
    ):
        if text not in known:
            raise UsageError(f"{flag}: got {text!r}, expected {' or '.join(known)}")
    with Display() as display, usage_errors():
        where = checked_device(device)
        kind = resolve_dtype(dtype, where)
        display.stage(f"reading the config of {model}")
        config = load_config(model)
        shape = shape_of_config(config, kind)
        if not 0 <= dense_layers <= shape.num_layers:
            raise UsageError(
                f"--dense-layers: got {dense_layers}, expected 0 to the model's {shape.num_layers} layers"
            )
        model_opt.check_positions("--context", context, tokens, config)
        if flops is None or bandwidth is None:
            display.stage("measuring this machine")
            measured = measure_machine(kind, where)
            flops, bandwidth = flops or measured.flops, bandwidth or measured.bandwidth
        machine = Machine(flops, bandwidth)
        display.stage("adding up the steps")
        prototype = SparseBudget(1, share, summaries, dense_layers)
        plans = make_plans(shape, context, branches, tokens, prototype)
    best = cheapest(plans, machine)
    dtype_name = str(kind).removeprefix("torch.")
    if json_output:
        report = {
            "model": model,
            "dtype": dtype_name,
            "machine": vars(machine) | {"intensity": machine.intensity},
            "search": {
                "context": context,
                "branches": branches,
                "tokens": tokens,
                **{name: value for name, value in prototype._asdict().items() if name != "pages"},
            },
            "plans": [_as_json(plan, machine) for plan in plans],
            "cheapest": best.name,
        }
        print_json(report)
    else:
        title = f"{model}, {dtype_name}: {branches} x {tokens} tokens after a prompt of {context:,}"
        _print(title, plans, best, machine)


def make_plans(
    shape: ModelShape, context: int, branches: int, tokens: int, prototype: SparseBudget
) -> list[Plan]:
    """Returns dense, then sparse budgets of 1/2 to 1/32 of the prompt's pages, without duplicates."""

    def cost(budget: SparseBudget | None) -> SearchCost:
        return search_cost(
            shape, prompt=context, branches=branches, generated=tokens, budget=budget, page_size=_PAGE_SIZE
        )

    pages = -(-context // _PAGE_SIZE)
    plans = [Plan("dense", pages, cost(None))]
    for fraction in _FRACTIONS:
        chosen = max(-(-pages // fraction), _LEAST_PAGES)
        if chosen < plans[-1].pages:
            plans.append(Plan(f"1/{fraction}", chosen, cost(prototype._replace(pages=chosen))))
    return plans


def cheapest(plans: list[Plan], machine: Machine) -> Plan:
    """Returns the plan with the fewest eFLOPs; among about equal ones, the one that reads most pages."""
    costs = [plan.cost.decode.combined(machine.intensity) for plan in plans]
    return next(plan for plan, cost in zip(plans, costs, strict=True) if cost <= min(costs) * _AS_CHEAP)


def in_words(plans: list[Plan], best: Plan, machine: Machine) -> str:
    """Returns the table's conclusion."""
    if best.name == "dense":
        return "Dense costs least: choosing pages would cost more than not reading the others saves."
    dense, least = (plan.cost.decode.combined(machine.intensity) for plan in (plans[0], best))
    return (
        f"Sparse, with {best.pages:,} pages ({best.name}), costs least: dense costs {dense / least:.2f} "
        "times as much. A larger budget loses less accuracy."
    )


def _step_seconds(plan: Plan, machine: Machine) -> float:
    """Returns the mean over the steps, at full rates."""
    return machine.seconds(plan.cost.decode) / plan.cost.steps


def _print(title: str, plans: list[Plan], best: Plan, machine: Machine) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("budget", no_wrap=True)
    for heading in ("pages", "TFLOP", "GB read", "eTFLOP", "of dense", "ms a step"):
        table.add_column(heading, justify="right", no_wrap=True)
    dense = plans[0].cost.decode.combined(machine.intensity)
    for plan in plans:
        cost = plan.cost.decode
        eflops = cost.combined(machine.intensity)
        table.add_row(
            f"{plan.name} *" if plan is best else plan.name,
            f"{plan.pages:,}",
            short(cost.flops / 1e12),
            short(cost.bytes / 1e9),
            short(eflops / 1e12),
            f"{eflops / dense:.0%}",
            short(_step_seconds(plan, machine) * 1e3),
            style="bold" if plan is best else "",
        )
    screen = Screen()
    screen.print(title)
    screen.print(table)
    prompt = plans[0].cost.prompt.combined(machine.intensity)
    screen.note(
        f"* {in_words(plans, best, machine)}\n"
        f"The prompt costs {short(prompt / 1e12)} eTFLOP more, whatever the budget. "
        f"At {short(machine.flops / 1e9)} GFLOP/s and {short(machine.bandwidth / 1e9)} GB/s a byte read "
        f"counts as {short(machine.intensity)} flops."
    )


def _as_json(plan: Plan, machine: Machine) -> dict[str, Any]:
    cost = plan.cost.decode
    return {
        "budget": plan.name,
        "pages": plan.pages,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "eflops": cost.combined(machine.intensity),
        "prompt_eflops": plan.cost.prompt.combined(machine.intensity),
        "step_seconds": _step_seconds(plan, machine),
        "parts": {
            name: part._asdict()
            for name, part in zip(("weights", "attention", "selection", "logits"), cost.parts(), strict=True)
        },
    }
