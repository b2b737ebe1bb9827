"""What docs/strategies.md says of each measured table, written from its record: date, settings, figures.

A record is that of `strategies/measured.py`. Each function returns Markdown; sentences that quote figures
compute them.
"""

from __future__ import annotations

from textwrap import fill
from typing import Any

from tts_decode.select.statistics import Interval, geometric_mean_ratio

from benches import atts_pair, coverage_curve, default_problems, fit_policy, st_bon_kv
from benches.search_comparison import base_of, summary, times
from benches.strategies.page import named, period
from benches.tables import Table, percent

Record = dict[str, Any]


def measured(record: Record) -> str:
    """The beginning of a sentence: when, with what and where."""
    return (
        f"Measured {record['date']} ({'; '.join(filter(None, (named(record['versions']), record['cpu'])))})"
    )


def section(*parts: str) -> str:
    """Paragraphs, wrapped, and tables."""
    return "\n\n".join(
        part if part.startswith("|") else fill(part, 120, break_long_words=False, break_on_hyphens=False)
        for part in parts
    )


def search_comparison(record: Record) -> str:
    settings, searches = record["settings"], record["searches"]
    rows = summary(searches, settings["parallel"])
    problems, width = rows[0]["problems"], rows[0]["width"]
    cells, gains, differences = [], [], []
    for row in rows:
        allocation, kind = row["variant"].split(" ", 1)
        is_base = row["variant"] == base_of(row["variant"])
        if not is_base:
            gains.append((row["ets_kv_tokens_gain"], row["mean_bytes_gain"]))
            differences += [row["solved_difference"], row["vote_solved_difference"]]
        cells.append(
            [
                allocation if is_base else "",
                KINDS[kind],
                percent(row["kept"]),
                f"{row['ets_kv_tokens']:,.0f}",
                "" if is_base else times(row["ets_kv_tokens_gain"]),
                f"{row['mean_bytes'] / 2**20:.1f} MiB",
                "" if is_base else times(row["mean_bytes_gain"]),
                f"{row['accuracy']['value'] * problems:.0f}",
                f"{row['vote_accuracy'] * problems:.0f}",
            ]
        )
    heads = ["allocation", "", "leaves kept", "KV by ETS's count, tokens", "less than REBASE"]
    heads += ["KV held, mean of a search", "less than REBASE", "solved", "by vote"]
    published = gains[: len(gains) // 2]  # rows are in the order of allocations, the published one first
    saved = [1 - 1 / gain["value"] for pair in published for gain in pair]
    bounds = [gain["low"] for gain, _ in published]
    apart = sum(_apart(difference) for difference in differences)
    count = "includes no saving at all" if min(bounds) <= 1 else "leaves out that nothing is saved"
    return section(
        f"Measured {period(search['date'] for search in searches)} ({named(settings['versions'])}): "
        f"{settings['model']} in {settings['dtype']}, width {width}, the first {problems} of the default "
        f"problems, answers of up to {settings['max_tokens']} tokens in steps of up to "
        f"{settings['max_step_tokens']}, lambda_b = {settings['lambda_b']:g}, lambda_d = "
        f"{settings['lambda_d'][str(width)]:g}, a cluster threshold of {settings['cluster_threshold']:g}, "
        f"`{settings['scorer']}` as scorer. Intervals are of 95 %, Student's t of the logarithms.",
        Table(heads, cells).markdown(),
        f"Against the REBASE of its authors ETS saves {percent(min(saved))} to {percent(max(saved))} of "
        f"the KV here, where its paper reports 1.8x less. By its own count the widest interval of these "
        f"{problems} problems {count}. The allocation makes a difference too: by the same count REBASE "
        f"with exact shares takes {times(_of_exact_rebase(searches).to_dict())} the KV of the published "
        f"REBASE. Of the {len(differences)} differences from REBASE in problems solved, by the best score "
        f"and by vote, {apart} can be told from 0.",
    )


KINDS = {
    "rebase": "REBASE",
    "ets, per node": "ETS, a price per step",
    "ets, per token": "ETS, a price per token",
}


def _apart(difference: Record) -> bool:
    low, high = difference["low"], difference["high"]
    return low is not None and not low <= 0 <= high


def _of_exact_rebase(searches: list[Record]) -> Interval:
    """How many times the KV of the published REBASE the exact one takes, by ETS's count."""
    kv = {
        variant: {s["task"]: max(float(s["ets_kv_tokens"]), 1.0) for s in searches if s["variant"] == variant}
        for variant in ("exact rebase", "published rebase")
    }
    exact, published = kv.values()
    return geometric_mean_ratio(list(exact.values()), [published[task] for task in exact])


def search_cost(record: Record) -> str:
    settings, shares = record["settings"], record["figures"]["outside"]
    return section(
        f"{measured(record)}: {settings['limit']} of the default problems, size {settings['n']}, "
        f"{settings['model']} in {settings['dtype']}. The share of the time outside the model and the "
        "draw of tokens, that is plan, pages and requests, selection, scores and records:",
        Table(["strategy", "share"], [[f"`{name}`", percent(s, 1)] for name, s in shares.items()]).markdown(),
    )


def st_bon(record: Record) -> str:
    settings = record["settings"]
    return section(
        f"{measured(record)}: {settings['model']} in {settings['dtype']}, {settings['n']} samples, "
        f"medians over {settings['problems']} problems; less than best-of-n by",
        st_bon_kv.table(record["figures"]).markdown(),
    )


def atts(record: Record) -> str:
    settings = record["settings"]
    target = settings["target"] or "Gemma 3 270M (Q4_K_M)"
    return section(
        f"{measured(record)}: {settings['draft']} drafts, {target} is the target, both in "
        f"{settings['dtype']}; {settings['problems']} default problems, n = {settings['n']}, answers of up "
        f"to {settings['max_tokens']} tokens in steps of up to {settings['max_step_tokens']}, "
        f"{settings['num_calibration']} calibration steps, which the draft's count holds; tokens of a "
        "problem:",
        atts_pair.table(record["figures"]).markdown(),
    )


def policy(record: Record) -> str:
    settings, figures = record["settings"], record["figures"]
    fitted = fit_policy.policy_of(figures, BINS)
    scores = [question["mean_score"] for question in figures["measured"]]
    return section(
        f"{measured(record)}: {settings['model']} in {settings['dtype']}, {settings['problems']} default "
        f"problems in {BINS} bins, size {settings['n']}, {settings['num_probes']} probes. Mean scores lay "
        f"between {min(scores):.2f} and {max(scores):.2f}. Problems solved, by bin and setting; last by "
        "the settings on all problems, and by policies on problems that they were not fitted on:",
        fit_policy.table(fitted).markdown(),
    )


BINS = 5


def coverage(record: Record) -> str:
    settings, figures = record["settings"], record["figures"]
    curve, solved = coverage_curve.curve(figures), coverage_curve.solved(figures)
    n, problems = settings["n"], settings["problems"]
    heads, row = ["k", *map(str, curve)], ["coverage", *(percent(share, 1) for share in curve.values())]
    return section(
        f"{measured(record)}: {settings['model']} in {settings['dtype']}, {problems} default problems, {n} "
        f"samples of each, temperature {settings['temperature']:g}, answers of up to "
        f"{settings['max_tokens']} tokens:",
        Table(heads, [row]).markdown(),
        f"Over the problems, the last one is {percent(solved.value, 1)} ({percent(solved.low, 1)} to "
        f"{percent(solved.high, 1)}, 95 %). A majority vote over the same {n} samples solves "
        f"{sum(figures['votes'])} of the {problems}; what lies between is for a verifier to find.",
    )


def problems(record: Record) -> str:
    settings, figures = record["settings"], record["figures"]
    return section(
        f"{measured(record)}: {settings['model']} in {settings['dtype']}, {settings['n']} samples of each "
        f"problem at temperature {settings['temperature']:g}, at most {settings['max_tokens']} tokens each:",
        default_problems.families(figures).markdown(),
        "What scorers make of those samples: how often a right answer is ranked above a wrong one of the "
        "same problem (by chance 50 %), and how many problems the sample of the best score solves.",
        default_problems.scorers(figures).markdown(),
    )
