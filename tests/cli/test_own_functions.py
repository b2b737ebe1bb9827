"""Functions of the user's own files: scorers, verifiers, tools and strategies; and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_commands import compare, last_error, search, write_files
from tts_decode.cli import judging, problem_options, scorers, strategy_options
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

def fails_at_times(text, expected):
    if expected == "blue":
        raise KeyError("gone")
    return 1.0

async def no_result(run):
    pass

async def text_result(run):
    return "7"

async def not_awaited(run):
    return run.result()

async def takes_nothing():
    pass

async def takes_more(run, count):
    pass

async def wants_an_option(run, *, count):
    pass

async def yields(run):
    yield 1

@strategy("not async")
def not_async(run):
    return 1

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
    for name in ("mine_decorated", "not_async"):
        STRATEGIES.pop(name, None)


def test_strategies(own: Path) -> None:
    decorated = strategy_options.get_strategy(f"{own}:mine_decorated")
    plain = strategy_options.get_strategy(f"{own}:mine")
    assert isinstance(plain, Strategy)
    assert (decorated.name, plain.name, plain.summary) == ("mine_decorated", "mine", "One answer, plainly.")
    assert strategy_options.parse_options([plain], ["n=3"]) == [{"n": 3}]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("{folder}/none.py:mine", "--strategy: there is no file .*none.py"),
        (
            "{file}:absent",
            "--strategy: got 'absent', expected a name that .*own.py defines: broken, compared, fails_at",
        ),
        ("{file}:judge", "a function, expected a function under the decorator"),
        ("{file}:number", "a int, expected a function under the decorator"),
        ("{file}:not_async", r"a function, expected .* or async def NAME\(run, \*, ...\) that ends with"),
        ("{file}:yields", "a function that yields, expected"),
        ("{file}:takes_nothing", r"got takes_nothing\(\) .* expected NAME\(run, \*, ...\): too many"),
        ("{file}:takes_more", r"got takes_more\(run, count\) .*: missing a required argument: 'count'"),
        ("{file}:wants_an_option", r"got wants_an_option\(run, \*, count\) .* option count has no default"),
        ("{folder}/broken.py:x", "broken.py raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_strategy(own: Path, named: str, message: str) -> None:
    (own.parent / "broken.py").write_text("1 / 0")
    with pytest.raises(UsageError, match=message):
        strategy_options.get_strategy(named.format(file=own, folder=own.parent))


def test_signatures_are_checked(own: Path) -> None:
    with pytest.raises(UsageError, match=r"got none\(\) in .*own.py, expected it to take none\(text\)"):
        load_function(f"{own}:none", "--scorer", "text")
    with pytest.raises(UsageError, match=r"an int, expected a function"):
        load_function(f"{own}:number", "--scorer", "text")


def test_scorers_and_tools(own: Path) -> None:
    scorers.check_scorer(f"{own}:score")
    assert not scorers.is_reward_model(f"{own}:score")
    assert scorers.is_reward_model("Qwen/Qwen2.5-Math-PRM-7B")
    assert scorers.is_reward_model("outcome:some/folder")
    with pytest.raises(UsageError, match=r"READER:FOLDER, a folder, OWNER/NAME on the hub or FILE.py:NAME"):
        scorers.check_scorer("nonsense")
    (made,) = strategy_options.parse_options([STRATEGIES["t1_verify"]], [f"tool={own}:run"])
    assert made["tool"]("print(1)") == "PRINT(1)"
    assert made["tool"].named == f"{own}:run"
    (made,) = strategy_options.parse_options([STRATEGIES["t1_verify"]], ["tool=python"], unsafe_tools=True)
    assert made["tool"]("print(6 * 7)") == "42"
    with pytest.raises(UsageError, match=r"--option tool: got 'x', expected FILE.py:NAME"):
        strategy_options.parse_options([STRATEGIES["t1_verify"]], ["tool=x"])


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
    ("name", "reason"), [("broken", "broken raised KeyError"), ("too_much", "got an int")]
)
def test_an_extract_that_fails_is_named(own: Path, name: str, reason: str) -> None:
    (made,) = strategy_options.parse_options([STRATEGIES["self_consistency"]], [f"extract={own}:{name}"])
    with pytest.raises(UsageError, match=reason):
        made["extract"]("a")


def test_a_verifier_that_raises_fails_its_problem_alone(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(own.parent)
    arguments = ["--tasks", str(own.parent / "tasks.jsonl"), "-s", "best_of_n", "-o", "n=2", "--json"]
    arguments += ["--verifier", f"{own}:fails_at_times", "--save", str(tmp_path / "saved")]
    for more in ([], ["--resume"]):
        assert compare(own.parent, *arguments, *more) == 0
        (row,) = json.loads(capsys.readouterr().out)["strategies"]
        assert (row["solved"], row["failed"]) == (1, 1)
        assert [outcome["solved"] for outcome in row["outcomes"]] == [True, False]
        assert "fails_at_times raised KeyError: 'gone'" in row["outcomes"][1]["error"]
    everywhere = ["--tasks", str(own.parent / "tasks.jsonl"), "-s", "best_of_n", "-o", "n=2"]
    assert compare(own.parent, *everywhere, "--verifier", f"{own}:broken") == 2
    assert "broken raised KeyError" in last_error(capsys)


def test_fields_of_the_command() -> None:
    assert problem_options.parse_fields(["prompt=problem,answer=solution", "name=id"]) == {
        "prompt": "problem",
        "answer": "solution",
        "name": "id",
    }
    with pytest.raises(UsageError, match="--field: got 'prompt', expected PART=FIELD"):
        problem_options.parse_fields(["prompt"])
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
    for name, returned in {
        "no_result": "None",
        "text_result": "a str",
        "not_awaited": "the coroutine result(), which was not awaited,",
    }.items():
        assert search(own.parent, "a", "-s", f"{own}:{name}") == 1
        assert last_error(capsys) == (
            f"tts-decode: {name}: got {returned} from the strategy, expected a SearchResult; write it as "
            "async def and end it with `return await run.result()`"
        )
    assert search(own.parent, "a", "-s", f"{own}:absent") == 2
    assert "expected a name that" in last_error(capsys)


OTHER = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Weights:
    length: int = 1

with open(__file__ + ".runs", "a") as file:
    file.write("x")

score = lambda text: Weights().length / (1 + len(text))

class Tool:
    async def __call__(self, code):
        return "7"

run = Tool()
"""


def test_a_file_runs_once_whatever_it_is_called(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named like a module that is there, in a folder with a space, by a relative path, with a dataclass."""
    write_files(own.parent)
    folder = own.parent / "of mine"
    folder.mkdir()
    (folder / "json.py").write_text(OTHER)
    monkeypatch.chdir(own.parent)
    named = ["-s", "t1_verify", "-o", "n=2", "-o", "tool=of mine/json.py:run"]
    assert search(own.parent, "a", *named, "--scorer", "./of mine/json.py:score", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 1
    assert (folder / "json.py.runs").read_text() == "x"
    assert json.__name__ == "json"


def test_a_tool_that_hangs_has_a_limit(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(own.parent)
    (own.parent / "hangs.py").write_text("import time\ndef find(query):\n    time.sleep(600)\n")
    asked = ["a", "-s", "r2_retrieval", "-o", f"retrieve={own.parent}/hangs.py:find", "--json"]
    assert search(own.parent, *asked, "--tool-timeout", "0.2") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["stopped"] == "retrieve gave nothing within 0.2 s"
    assert search(own.parent, *asked, "--tool-timeout", "0") == 2
    assert "--tool-timeout: got 0" in last_error(capsys)


WRONG = """
async def one(branches):
    return 0.5

def none(text):
    return None

def number(text):
    return 5
"""


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (
            ["-s", "best_of_n", "-o", "n=2", "--scorer", "{}:one"],
            "scorer one: got a float of it, expected a list",
        ),
        (
            ["-s", "best_of_n", "-o", "n=2", "--scorer", "{}:none"],
            "scorer verifier: got the score None for branch",
        ),
        (["-s", "t1_verify", "-o", "n=2", "-o", "tool={}:number"], "tool: got an int of it, expected a text"),
        (["-s", "r2_retrieval", "-o", "retrieve={}:number"], "retrieve: got an int of it, expected a text"),
    ],
)
def test_what_a_function_returns_is_told_in_one_line(
    own: Path, capsys: pytest.CaptureFixture[str], named: list[str], told: str
) -> None:
    write_files(own.parent)
    (own.parent / "wrong.py").write_text(WRONG)
    assert search(own.parent, "a", *(part.format(own.parent / "wrong.py") for part in named)) == 1
    assert last_error(capsys).startswith(f"tts-decode: {told}")
