"""A policy of `compute_optimal` for a model, from the default problems: python -m benches.fit_policy

Each problem is probed, and searched with each setting: search against the scorer, and chains of revisions at
several ratios of sequential to parallel. The accuracy of each setting in each bin of difficulty is printed,
and the policy that takes the best of each bin is written as JSON, for `compute_optimal(policy=)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.rewards import mean_probability
from tts_decode.search import Policy, Setting, fit_policy, get_strategy, measure_settings
from tts_decode.tasks import default_tasks


def settings_of(n: int) -> list[Setting]:
    """Search, and revisions in chains of 2, 4 ... n answers."""
    search = [Setting(get_strategy(name)) for name in ("best_of_n", "beam_search", "dvts")]
    lengths = [length for length in range(2, n + 1) if n % length == 0 and length & (length - 1) == 0]
    revised = get_strategy("revisions")
    return search + [Setting(revised, {"num_sequential": length}) for length in lengths]


def print_policy(policy: Policy) -> None:
    about = policy.about
    heads = ("bin", "mean score from", "questions", *about["candidates"], "chosen")
    table = Table(*heads, title="solved, by bin of difficulty")
    for index, setting in enumerate(policy.settings):
        low = f"{policy.edges[index]:.3f}" if index < len(policy.edges) else ""
        accuracy = [f"{share:.0%}" for share in about["accuracy"][index]]
        table.add_row(str(index + 1), low, str(about["questions"][index]), *accuracy, str(setting))
    whole = [f"{share:.0%}" for share in about["accuracy_of_single_settings"]]
    held_out = about["cross_validated"]
    policies = "" if held_out is None else f"held out {held_out:.0%}"
    table.add_row("all", "", str(sum(about["questions"])), *whole, policies)
    Console().print(table)


def main(
    output: Annotated[Path, typer.Argument(help="the file of the policy")],
    model: str = DEFAULT_MODEL,
    problems: int = 40,
    n: int = 8,
    bins: int = 5,
    num_probes: int = 4,
    temperature: float = 0.8,
    max_tokens: int = 64,
    max_step_tokens: int = 32,
) -> None:
    decoder = TreeDecoder(*load_model(model))
    sampling = SamplingParams(
        temperature, stop=("\n",), max_tokens=max_tokens, max_step_tokens=max_step_tokens
    )
    settings = settings_of(n)
    measured = decoder.run(
        measure_settings(
            decoder,
            default_tasks(problems),
            settings,
            n=n,
            scorer=mean_probability(),
            num_probes=num_probes,
            sampling=sampling,
            make_prompt=lambda text: [{"role": "user", "content": text}],
        )
    )

    policy = fit_policy(measured, settings, bins)
    policy.save(output)
    print_policy(policy)


if __name__ == "__main__":
    typer.run(main)
