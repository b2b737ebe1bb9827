"""Fits a policy of `compute_optimal` to a model on the default problems: python -m benches.fit_policy

Each problem is probed, and searched with each setting: search against the scorer, and chains of revisions at
several ratios of sequential to parallel. The program prints each setting's accuracy in each bin of
difficulty, and writes the policy with the best setting of each bin as JSON, for `compute_optimal(policy=)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.rewards import mean_probability
from tts_decode.search import Measured, Policy, Setting, fit_policy, get_strategy, measure_settings
from tts_decode.tasks import default_tasks

from benches.tables import Table, percent

Record = dict[str, Any]


def settings_of(n: int) -> list[Setting]:
    """Search, and revisions in chains of 2, 4 ... n answers."""
    search = [Setting(get_strategy(name)) for name in ("best_of_n", "beam_search", "dvts")]
    lengths = [length for length in range(2, n + 1) if n % length == 0 and length & (length - 1) == 0]
    revised = get_strategy("revisions")
    return search + [Setting(revised, {"num_sequential": length}) for length in lengths]


def measure(
    *,
    model: str,
    dtype: str,
    problems: int,
    n: int,
    num_probes: int,
    temperature: float,
    seed: int,
    max_tokens: int,
    max_step_tokens: int,
) -> Record:
    """measured: of each problem the mean score of its probes, and of each of `settings_of(n)` whether it
    solved the problem and the tokens that took."""
    decoder = TreeDecoder(*load_model(model, dtype))
    sampling = SamplingParams(
        temperature, seed=seed, stop=("\n",), max_tokens=max_tokens, max_step_tokens=max_step_tokens
    )
    measured = decoder.run(
        measure_settings(
            decoder,
            default_tasks(problems),
            settings_of(n),
            n=n,
            scorer=mean_probability(),
            num_probes=num_probes,
            sampling=sampling,
            make_prompt=lambda text: [{"role": "user", "content": text}],
        )
    )
    return {"n": n, "measured": [vars(question) for question in measured]}


def policy_of(figures: Record, bins: int) -> Policy:
    measured = [Measured(**question) for question in figures["measured"]]
    return fit_policy(measured, settings_of(figures["n"]), bins)


def table(policy: Policy) -> Table:
    """Solved, by bin of difficulty and setting; last all bins, and policies on questions held out."""
    about = policy.about
    heads = ["bin", "mean score from", "questions", *about["candidates"], "chosen"]
    rows = []
    for index, setting in enumerate(policy.settings):
        low = f"{policy.edges[index]:.3f}" if index < len(policy.edges) else ""
        accuracy = map(percent, about["accuracy"][index])
        rows.append([str(index + 1), low, str(about["questions"][index]), *accuracy, str(setting)])
    held_out = about["cross_validated"]
    policies = "" if held_out is None else f"held out {percent(held_out)}"
    whole = map(percent, about["accuracy_of_single_settings"])
    rows.append(["all", "", str(sum(about["questions"])), *whole, policies])
    return Table(heads, rows)


def main(
    output: Annotated[Path, typer.Argument(help="the file of the policy")],
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
    problems: int = 40,
    n: int = 8,
    bins: int = 5,
    num_probes: int = 4,
    temperature: float = 0.8,
    seed: int = 0,
    max_tokens: int = 64,
    max_step_tokens: int = 32,
) -> None:
    figures = measure(
        model=model,
        dtype=dtype,
        problems=problems,
        n=n,
        num_probes=num_probes,
        temperature=temperature,
        seed=seed,
        max_tokens=max_tokens,
        max_step_tokens=max_step_tokens,
    )
    policy = policy_of(figures, bins)
    policy.save(output)
    table(policy).show("solved, by bin of difficulty")


if __name__ == "__main__":
    typer.run(main)
