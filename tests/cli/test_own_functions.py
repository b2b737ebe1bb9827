"""Functions of the user's own files: scorers, verifiers, tools and strategies; and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_commands import last_error, search, write_files
from tts_decode.cli import judging, options, scorers
from tts_decode.cli.errors import UsageError
from tts_decode.cli.functions import load_function
from tts_decode.search import STRATEGIES, Strategy
from tts_decode.tasks import Task

CODE = '''
"""Of a user."""
import helper_beside
from tts_decode.search import SearchRun, strategy

number = 3

async def score(branches):
    return [float(len(branch.text)) for branch in branches]

def judge(text):
    return float("7" in text)

def compared(text, expected):
    return float(expected in text)

def broken(text):
    raise KeyError("gone")

def not_a_number(text):
    return float("nan")

def too_much(text):
    return 2

def none():
    return 1

def run(code):
    return code.upper()

async def no_result(run):
    pass

@strategy("mine")
async def mine_decorated(run: SearchRun, *, n: int = 2):
    """All about it."""
    (branch,) = run.fork(run.root, 1)
    await run.complete(branch)
    return await run.result(run.end(branch))

async def mine(run, *, n: int = 1, tool=None):
    """One answer, plainly."""
    (branch,) = run.fork(run.root, 1)
    await run.complete(branch)
    run.end(branch)
    return await run.result()
'''


@pytest.fixture
def own(tmp_path: Path):
    (tmp_path / "helper_beside.py").write_text("")
    (tmp_path / "own.py").write_text(CODE)
    yield tmp_path / "own.py"
    STRATEGIES.pop("mine_decorated", None)


def test_strategies(own: Path) -> None:
    decorated = options.get_strategy(f"{own}:mine_decorated")
    plain = options.get_strategy(f"{own}:mine")
    assert isinstance(plain, Strategy)
    assert (decorated.name, plain.name, plain.summary) == ("mine_decorated", "mine", "One answer, plainly.")
    assert options.parse_options([plain], ["n=3"]) == [{"n": 3}]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("{folder}/none.py:mine", "--strategy: there is no file .*none.py"),
        (
            "{file}:absent",
            "--strategy: got 'absent', expected a name that .*own.py defines: broken, compared, judge",
        ),
        ("{file}:judge", "a function, expected a function under the decorator"),
        ("{file}:number", "a int, expected a function under the decorator"),
        ("{folder}/broken.py:x", "broken.py raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_strategy(own: Path, named: str, message: str) -> None:
    (own.parent / "broken.py").write_text("1 / 0")
    with pytest.raises(UsageError, match=message):
        options.get_strategy(named.format(file=own, folder=own.parent))


def test_signatures_are_checked(own: Path) -> None:
    with pytest.raises(UsageError, match=r"got none\(\) in .*own.py, expected it to take none\(text\)"):
        load_function(f"{own}:none", "--scorer", "text")
    with pytest.raises(UsageError, match=r"a int, expected a function"):
        load_function(f"{own}:number", "--scorer", "text")


def test_scorers_and_tools(own: Path) -> None:
    scorers.check_scorer(f"{own}:score")
    assert not scorers.is_reward_model(f"{own}:score")
    assert scorers.is_reward_model("Qwen/Qwen2.5-Math-PRM-7B")
    assert scorers.is_reward_model("outcome:some/folder")
    with pytest.raises(UsageError, match=r"READER:FOLDER, a folder, OWNER/NAME on the hub or FILE.py:NAME"):
        scorers.check_scorer("nonsense")
    (made,) = options.parse_options([STRATEGIES["t1_verify"]], [f"tool={own}:run"])
    assert made["tool"]("print(1)") == "PRINT(1)"
    assert made["tool"].named == f"{own}:run"
    (made,) = options.parse_options([STRATEGIES["t1_verify"]], ["tool=python"], unsafe_tools=True)
    assert made["tool"]("print(6 * 7)") == "42"
    with pytest.raises(UsageError, match=r"--option tool: got 'x', expected FILE.py:NAME"):
        options.parse_options([STRATEGIES["t1_verify"]], ["tool=x"])


def test_verifiers(own: Path) -> None:
    tasks = [Task("a", "?", "5")]
    (one,) = judging.judged_by(f"{own}:judge", tasks)
    (two,) = judging.judged_by(f"{own}:compared", tasks)
    assert one.verify is not None
    assert two.verify is not None
    assert [one.verify(t) for t in ("7", "5")] == [1.0, 0.0]
    assert [two.verify(t) for t in ("7", "5")] == [0.0, 1.0]
    with pytest.raises(UsageError, match="an async function, expected one that returns a number"):
        judging.judged_by(f"{own}:score", tasks)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "broken raised KeyError"),
        ("not_a_number", "got nan of .*from 0 to 1"),
        ("too_much", "got 2 of .*from 0 to 1"),
        ("run", "got 'A' of .*from 0 to 1"),
    ],
)
def test_a_verifier_that_gives_no_score_is_named(own: Path, name: str, reason: str) -> None:
    (task,) = judging.judged_by(f"{own}:{name}", [Task("a", "?", "5")])
    assert task.verify is not None
    with pytest.raises(UsageError, match=reason):
        task.verify("a")


@pytest.mark.parametrize(
    ("name", "reason"), [("broken", "broken raised KeyError"), ("too_much", "got a int")]
)
def test_an_extract_that_fails_is_named(own: Path, name: str, reason: str) -> None:
    (made,) = options.parse_options([STRATEGIES["self_consistency"]], [f"extract={own}:{name}"])
    with pytest.raises(UsageError, match=reason):
        made["extract"]("a")


def test_fields_of_the_command() -> None:
    assert options.parse_fields(["prompt=problem,answer=solution", "name=id"]) == {
        "prompt": "problem",
        "answer": "solution",
        "name": "id",
    }
    with pytest.raises(UsageError, match="--field: got 'prompt', expected PART=FIELD"):
        options.parse_fields(["prompt"])
    with pytest.raises(UsageError, match="--format: got 'gsm8k' without --tasks"):
        judging.refuse_task_options(format="gsm8k")


def test_the_command_runs_them(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(own.parent)
    named = ["-s", f"{own}:mine_decorated", "--verifier", f"{own}:compared", "--json"]
    assert search(own.parent, "--tasks", str(own.parent / "tasks.jsonl"), *named) == 0
    assert [result["solved"] for result in json.loads(capsys.readouterr().out)["results"]] == [False, False]
    assert search(own.parent, "a", "-s", "best_of_n", "-o", "n=2", "--scorer", f"{own}:score", "--json") == 0
    found = json.loads(capsys.readouterr().out)["results"][0]["search"]
    assert [c["score"] for c in found["candidates"]] == [float(len(c["text"])) for c in found["candidates"]]
    with pytest.raises(TypeError, match="got a NoneType from the strategy, expected a SearchResult"):
        search(own.parent, "a", "-s", f"{own}:no_result")
    assert search(own.parent, "a", "-s", f"{own}:absent") == 2
    assert "expected a name that" in last_error(capsys)
