"""Text of docs/strategies.md for each measured table, generated from its record: date, settings, figures.

Records come from `strategies/measured.py`. Each function returns Markdown; sentences that quote figures
compute them.
"""

from __future__ import annotations

from textwrap import fill
from typing import Any

from tts_decode.select.statistics import geometric_mean_ratio

from benches import atts_pair, coverage_curve, default_problems, fit_policy, st_bon_kv
from benches.search_comparison import base_of, summary, times
from benches.strategies.page import named, period
from benches.strategies.page import settings as settings_of_rows
from benches.tables import Table, percent

Record = dict[str, Any]

BINS = 5  # of the fitted policy
_KINDS = {
    "rebase": "REBASE",
    "ets, per node": "ETS, a price per step",
    "ets, per token": "ETS, a price per token",
}


def measured(record: Record) -> str:
    """Returns the beginning of a sentence: date, versions and machine."""
    return (
        f"Measured {record['date']} ({'; '.join(filter(None, (named(record['versions']), record['cpu'])))})"
    )


def section(*parts: str) -> str:
    """Joins paragraphs, wrapped, and tables."""
    return "\n\n".join(
        part if part.startswith("|") else fill(part, 120, break_long_words=False, break_on_hyphens=False)
        for part in parts
    )


def strategies(record: Record) -> str:
    return section(settings_of_rows(record))


def search_comparison(record: Record) -> str:
    settings, searches = record["settings"], record["searches"]
    rows = summary(searches, settings["parallel"])
    problems, width = rows[0]["problems"], rows[0]["width"]
    heads = ["allocation", "", "leaves kept", "KV by ETS's count, tokens", "less than REBASE"]
    heads += ["KV held, mean of a search", "less than REBASE", "solved", "by vote"]
    return section(
        f"Measured {period(search['date'] for search in searches)} ({named(settings['versions'])}): "
        f"{settings['model']} in {settings['dtype']}, width {width}, the first {problems} of the default "
        f"problems, answers of up to {settings['max_tokens']} tokens in steps of up to "
        f"{settings['max_step_tokens']}, lambda_b = {settings['lambda_b']:g}, lambda_d = "
        f"{settings['lambda_d'][str(width)]:g}, a cluster threshold of {settings['cluster_threshold']:g}, "
        f"`{settings['scorer']}` as scorer. Intervals are 95 %, Student's t of the logarithms.",
        Table(heads, [_row(row) for row in rows]).markdown(),
        _found(rows, searches),
    )


def _row(row: Record) -> list[str]:
    allocation, kind = row["variant"].split(" ", 1)
    is_base = row["variant"] == base_of(row["variant"])
    return [
        allocation if is_base else "",
        _KINDS[kind],
        percent(row["kept"]),
        f"{row['ets_kv_tokens']:,.0f}",
        "" if is_base else times(row["ets_kv_tokens_gain"]),
        f"{row['mean_bytes'] / 2**20:.1f} MiB",
        "" if is_base else times(row["mean_bytes_gain"]),
        f"{row['accuracy']['value'] * row['problems']:.0f}",
        f"{row['vote_accuracy'] * row['problems']:.0f}",
    ]


def _found(rows: list[Record], searches: list[Record]) -> str:
    """States the findings: savings over published REBASE, its KV compared with exact REBASE, accuracy."""
    compared = [row for row in rows if row["variant"] != base_of(row["variant"])]
    published = [row for row in compared if row["variant"].startswith("published")]
    gains = [row[name]["value"] for row in published for name in ("ets_kv_tokens_gain", "mean_bytes_gain")]
    saved = [1 - 1 / gain for gain in gains]
    none_saved = sum(_holds(row["ets_kv_tokens_gain"], 1) for row in published)
    kv = [
        {s["task"]: max(float(s["ets_kv_tokens"]), 1.0) for s in searches if s["variant"] == variant}
        for variant in ("exact rebase", "published rebase")
    ]
    heavier = geometric_mean_ratio(*([side[task] for task in kv[0]] for side in kv))
    differences = [row[name] for row in compared for name in ("solved_difference", "vote_solved_difference")]
    apart = sum(not _holds(difference, 0) for difference in differences)
    return (
        f"Compared with its authors' REBASE, ETS saves {percent(min(saved))} to {percent(max(saved))} of the "
        f"KV here, while its paper reports 1.8x less; by its own count {none_saved or 'none'} of the "
        f"{len(published)} intervals include no saving at all. The allocation alone makes a difference too: "
        "by the same count, REBASE with exact shares takes "
        f"{times(heavier.to_dict())} the KV of the published REBASE. In "
        f"{apart or 'none'} of {len(differences)} comparisons, by the best score and by vote, the "
        "problems suffice to distinguish the accuracy from REBASE's."
    )


def _holds(interval: Record, value: float) -> bool:
    """Whether the interval contains the value; a single pair of problems gives no interval."""
    return interval["low"] is None or bool(interval["low"] <= value <= interval["high"])


def search_cost(record: Record) -> str:
    settings, shares = record["settings"], record["figures"]["outside"]
    return section(
        f"{measured(record)}: {settings['limit']} of the default problems, size {settings['n']}, "
        f"{settings['model']} in {settings['dtype']}. The table gives the share of time outside the model "
        "and the draw of tokens: plan, pages and requests, selection, scores and records.",
        Table(["strategy", "share"], [[f"`{name}`", percent(s, 1)] for name, s in shares.items()]).markdown(),
    )


def st_bon(record: Record) -> str:
    settings = record["settings"]
    return section(
        f"{measured(record)}: {settings['model']} in {settings['dtype']}, {settings['n']} samples, "
        f"medians over {settings['problems']} problems. Savings over best-of-n:",
        st_bon_kv.table(record["figures"]).markdown(),
    )


def atts(record: Record) -> str:
    settings = record["settings"]
    target = settings["target"] or "Gemma 3 270M (Q4_K_M)"
    return section(
        f"{measured(record)}: {settings['draft']} drafts, {target} is the target, both in "
        f"{settings['dtype']}; {settings['problems']} default problems, n = {settings['n']}, answers of up "
        f"to {settings['max_tokens']} tokens in steps of up to {settings['max_step_tokens']}, "
        f"{settings['num_calibration']} calibration steps, which the draft's count includes. Tokens per "
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
        f"between {min(scores):.2f} and {max(scores):.2f}. The rows give the problems solved, by bin and "
        "setting; the last one, on all problems, by setting and by policies fitted on other problems:",
        fit_policy.table(fitted).markdown(),
        f"The smallest bin has {min(fitted.about['questions'])} questions, too few to judge a setting: the "
        "result is mostly chance. The last column of the last row shows the value of the choice.",
    )


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
        f"Over the problems, the last coverage is {percent(solved.value, 1)} ({percent(solved.low, 1)} to "
        f"{percent(solved.high, 1)}, 95 %). A majority vote over the same {n} samples solves "
        f"{sum(figures['votes'])} of the {problems}; a verifier can gain the difference.",
    )


def problems(record: Record) -> str:
    settings, figures = record["settings"], record["figures"]
    return section(
        f"{measured(record)}: {settings['model']} in {settings['dtype']}, {settings['n']} samples of each "
        f"problem at temperature {settings['temperature']:g}, at most {settings['max_tokens']} tokens each:",
        default_problems.families(figures).markdown(),
        "The next table rates scorers on those samples: how often they rank a right answer above a wrong one "
        "of the same problem (by chance 50 %), and how many problems the sample with the best score solves.",
        default_problems.scorers(figures).markdown(),
    )
