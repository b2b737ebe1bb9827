"""Measuring the tables of strategies: setups that fit, problems with an answer, rows as recorded."""

from __future__ import annotations

import json

import pytest
import torch
from tts_decode.errors import SandboxError
from tts_decode.sandbox import check_sandbox
from tts_decode.search import STRATEGIES, SearchResult, SearchRun, strategy

from benches.all_strategies import RESULTS, missing, setup_of
from benches.strategies.kit import retrieve
from benches.strategies.page import HEADS, fill_rows, settings
from benches.strategies.problems import PROGRAMS, passed, problems
from benches.strategies.setups import NOT_RUN, SETUPS, Part, Setup, described
from benches.strategies.verifier import fit, ranked

OURS = {name: s for name, s in STRATEGIES.items() if s.family != "own"}


@pytest.fixture(scope="module")
def sandbox() -> None:
    try:
        check_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))


RIGHT = {
    "double": "print(2 * int(input()))",
    "next": "n = int(input())\nprint(n + 1)",
    "cube": "print(int(input()) ** 3)",
    "absolute": "print(abs(int(input())))",
    "even": "print('odd' if int(input()) % 2 else 'even')",
    "length": "print(len(input()))",
}


def test_every_strategy_has_figures_or_a_mark() -> None:
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(record["strategies"]) | set(NOT_RUN) == set(OURS)
    assert not set(record["strategies"]) & set(NOT_RUN)
    for name, kept in record["strategies"].items():
        assert kept["setup"] == described(setup_of(STRATEGIES[name], record["n"])), name
        assert kept["errors"] == [], name
        assert kept["generated_tokens"] > 0


def test_what_is_missing_or_has_another_setup_is_run_again() -> None:
    @strategy("a user's own, which has no setup and is not run")
    async def sixes(run: SearchRun, *, n: int = 2) -> SearchResult:
        raise NotImplementedError

    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert missing(record) == []
    del record["strategies"]["ets"]
    record["strategies"]["atts"]["setup"]["options"]["n"] = 3
    assert {strategy.name for strategy in missing(record)} == {"ets", "atts"}


def test_setups_name_options_that_strategies_have() -> None:
    assert set(SETUPS) | set(NOT_RUN) <= set(OURS)
    assert not set(SETUPS) & set(NOT_RUN)
    for name, setup in SETUPS.items():
        parameters = OURS[name].parameters
        assert set(setup.options) <= set(parameters), name
        assert setup.scorer is None or "scorer" in parameters, name
        for option, value in setup.options.items():
            if not isinstance(value, (Part, tuple)):
                assert type(value) is type(parameters[option].default), (name, option)


def test_sizes_and_scorers_are_filled_in() -> None:
    assert setup_of(STRATEGIES["best_of_n"], 8) == Setup(scorer="trained verifier", options={"n": 8})
    assert setup_of(STRATEGIES["tpo"], 8).options == {"n": 5}  # its default
    assert setup_of(STRATEGIES["multi_verifier"], 8).options["n"] == 4  # its setup's
    assert setup_of(STRATEGIES["self_consistency"], 8).scorer is None


def test_a_filled_page() -> None:
    page = "\n".join(
        [
            "| strategy | paper | needs | departures | solved |",
            "|---|---|---|---|---:|",
            "| [`atts`](a.py) | A | P1 | none | old |",
            "| [`swift`](b.py) | B | P2 | few | old |",
            "",
            "| other | table |",
            "",
            "| strategy | share |",
            "|---|---:|",
            "| `ets` | 4 % |",
        ]
    )
    setup = Setup("programs", "own check", {"n": 4, "decoders": (Part.FIRST, Part.SECOND), "tool": Part.TOOL})
    kept = {"solved": 1, "problems": 6, "generated_tokens": 1234.4, "mean_kv_bytes": 3.25 * 2**20}
    record = {
        "model": "M",
        "dtype": "bfloat16",
        "problems": 12,
        "temperature": 0.8,
        "max_tokens": 64,
        "max_step_tokens": 32,
        "versions": {"torch": "2"},
        "strategies": {"atts": kept | {"setup": described(setup), "date": "2026-01-02"}},
    }
    assert settings(record).startswith(
        "Measured 2026-01-02 (torch 2): M in bfloat16, 12 problems, temperature 0.8"
    )
    lines = fill_rows(page, record).split("\n")
    assert lines[0] == f"| strategy | paper | needs | departures | {' | '.join(HEADS)} |"
    assert lines[1] == "|---|---|---|---|---|---:|---:|---:|"
    assert lines[2] == (
        "| [`atts`](a.py) | A | P1 | none | own problems (programs), own check, Gemma 3 270M, Python in the "
        "sandbox, `n=4` | 1/6 | 1,234 | 3.2 |"
    )
    assert lines[3] == f"| [`swift`](b.py) | B | P2 | few | not run: {NOT_RUN['swift']} |  |  |  |"
    assert lines[5:] == page.split("\n")[5:]  # tables of something else
    assert fill_rows("\n".join(lines), record) == "\n".join(lines)


@pytest.mark.parametrize("problem", PROGRAMS, ids=lambda problem: problem.name)
def test_programs_are_judged_by_their_tests(problem: object, sandbox: None) -> None:
    fenced = f"So:\n```python\n{RIGHT[problem.name]}\n```"
    assert passed(fenced, problem.public) == [True] * len(problem.public)
    assert passed("print(12345)", problem.public) == [False] * len(problem.public)
    task = problems("programs", len(PROGRAMS))[PROGRAMS.index(problem)]
    assert task.verify(fenced) == 1.0
    assert task.verify("```python\nprint(int(input()) + 4)\n```") == 0.0


def test_stories_end_with_their_question() -> None:
    (first, *_) = problems("stories", 6)
    assert first.prompt == "Ann has 3 apples. Ben has 4 apples more than Ann. How many apples does Ben have?"
    assert first.verify("He has 3 + 4 = 7 apples.") == 1.0
    assert first.verify("He has 4 apples.") == 0.0


def test_the_retriever_finds_what_a_query_is_about() -> None:
    assert "take away a negative number" in retrieve("take away a negative number")
    assert retrieve("xylophone") == ""


def test_the_verifier_is_a_logistic_regression() -> None:
    """Two clusters on one axis of two: the weight is along it, and its end is where the ridge balances it."""
    states = torch.tensor([[-1.0, 0.5], [-1.0, -0.5], [1.0, 0.5], [1.0, -0.5]], dtype=torch.float64)
    right = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    weight, bias = fit(states, right, ridge=0.1)
    assert abs(float(weight[1])) < 1e-6
    assert abs(bias) < 1e-6
    # d/dw of log(1 + exp(-a w)) + 0.1 w^2 is 0, for the standardised state a and w = weight / a.
    a = 1 / float(states[:, 0].std())
    w = float(weight[0]) / a
    assert 0.2 * w == pytest.approx(a / (1 + torch.tensor(a * w).exp().item()), rel=1e-4)
    assert ranked(torch.tensor([0.9, 0.2, 0.2]), torch.tensor([1.0, 1.0, 0.0])) == 0.75
