"""Every file of `examples/` runs, and what it shows is true."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from openai_server import Server, choice
from scripted import run_scripted, scripted_decoder
from tts_decode import TreeDecoder
from tts_decode.select import extract_answer

FOLDER = Path(__file__).parents[2] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"examples.{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def default_model(monkeypatch: pytest.MonkeyPatch, real_model: tuple[Any, Any]) -> None:
    """`TreeDecoder.from_pretrained` takes the model that other tests have loaded already."""
    monkeypatch.setattr(sys.modules[TreeDecoder.__module__], "load_model", lambda *a, **options: real_model)


def test_every_example_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {file.stem for file in FOLDER.glob("*.py")} <= tested


@pytest.mark.model
def test_first_search(default_model: None) -> None:
    result = load("first_search").main(n=4)
    votes = Counter(extract_answer(candidate.text) for candidate in result.candidates)
    assert votes.total() == 4
    assert votes[extract_answer(result.best.text)] == max(votes.values())


@pytest.mark.model
def test_own_strategy(default_model: None) -> None:
    result = load("own_strategy").main()
    assert max(result.votes.values()) == 2 or sum(result.votes.values()) == 8
    assert sum(result.votes.values()) == len(result.candidates)


def test_own_strategy_votes_by_meaning() -> None:
    texts = iter(["So 3.", "It is 7 hours.", "The answer is 7.0", "9"])
    decoder = scripted_decoder(lambda prefix, k: (next(texts), "eos"))
    result = run_scripted(decoder, load("own_strategy").first_to_agree, "Q: ")
    assert result.votes == {"7 hours": 2.0, "3": 1.0}
    assert result.answer == "The answer is 7.0"


@pytest.mark.model
def test_ets_with_scorer(default_model: None) -> None:
    result = load("ets_with_scorer").main(n=3)
    assert 0 < result.stats.generated_tokens <= 400
    for candidate in result.candidates:
        words = candidate.text.split()
        with_digit = [word for word in words if set(word) & set("0123456789")]
        assert candidate.score == pytest.approx(len(with_digit) / max(len(words), 1))
    assert result.best.score == max(candidate.score for candidate in result.candidates)


@pytest.mark.model
def test_branches(default_model: None, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = load("branches").main()
    assert first != second
    assert {first[:6], second[:6]} == {"A bird"}  # likelier to answer what can fly than a stone is
    assert "0 bytes of KV are still held" in capsys.readouterr().out


def test_kernels_alone(capsys: pytest.CaptureFixture[str]) -> None:
    largest = load("kernels_alone").main(prompt_tokens=100, num_branches=8)
    assert largest < 1e-5  # float32 sums of about 100 products in another order
    # Pages of 16 tokens: each branch has a copy of the last 4 of the prompt, and one token of its own.
    assert "908 tokens in 140 slots" in capsys.readouterr().out


def plain_logits(engine: Any, tokens: list[int]) -> torch.Tensor:
    """The same network over one text in float64, with its own keys and values and torch's attention."""
    heads = torch.nn.functional.scaled_dot_product_attention
    x = engine.embeddings.double()[tokens] + engine.positions.double()[: len(tokens)]
    for layer in engine.layers:
        q, k, v, out, up, down = (weight.double() for weight in layer)
        h = x * (x * x).mean(-1, keepdim=True).add(torch.finfo(torch.float32).eps).rsqrt()
        parts = [(h @ weight).view(len(tokens), -1, 32).transpose(0, 1)[None] for weight in (q, k, v)]
        x = x + heads(*parts, is_causal=True, enable_gqa=True)[0].transpose(0, 1).flatten(1) @ out
        h = x * (x * x).mean(-1, keepdim=True).add(torch.finfo(torch.float32).eps).rsqrt() @ up
        x = x + h * h.sigmoid() @ down
    last = x[-1]
    return last * (last * last).mean().rsqrt() @ engine.embeddings.double().T / 128**0.5


def test_own_engine_is_the_file_of_its_tutorial(capsys: pytest.CaptureFixture[str]) -> None:
    """The page has the whole file, as it is also read where no site is built, and what it prints."""
    page = (FOLDER.parent / "docs/tutorials/own-engine.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```\n")[0]
    assert code == (FOLDER / "own_engine.py").read_text(encoding="utf-8")
    load("own_engine").main()
    assert f"`{capsys.readouterr().out.strip()}`" in page


def test_own_engine(capsys: pytest.CaptureFixture[str]) -> None:
    engine, branches, logits = load("own_engine").main(num_branches=6, steps=20)
    for branch, found in zip(branches, logits, strict=True):
        expected = plain_logits(engine, engine.tree.tokens(branch).tolist())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert logits.std(0).max() > 0.5  # the branches went different ways
    # Pages of 16 tokens: five full ones of the prompt are shared, its last 10 tokens are in a page of each.
    assert "660 tokens of 6 branches in 260 slots" in capsys.readouterr().out


def test_own_engine_forks_of_forks() -> None:
    engine = load("own_engine").Engine(num_pages=64)
    root = engine.tree.create()
    engine.step([root], [list(range(3, 50))])
    first, second = engine.tree.fork(root, 2)
    engine.step([first, second], [[5, 6, 7], [8]])  # of different lengths in one forward
    third, fourth = engine.tree.fork(first, 2)
    engine.tree.truncate(third, 48)
    engine.tree.release(second)
    logits = engine.step([fourth, third], [[1, 2], [9]])
    for branch, found in zip([fourth, third], logits, strict=True):
        expected = plain_logits(engine, engine.tree.tokens(branch).tolist())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert engine.tree.tokens(third).tolist() == [*range(3, 50), 5, 9]


def test_openai_endpoint(server: Server) -> None:
    """Beams on "So" are left for those on "12 - 5 = 7", as the scorer prefers them."""

    def answer(body: dict[str, Any]) -> Any:
        if body["prompt"].endswith("Answer:\n"):
            first = "12 - 5 = 7" if len(server.bodies) % 2 else "So"
            return choice(first, "stop", 4, stop_reason="\n")
        return choice("It is 7." if "= 7" in body["prompt"] else "It is 8.", "stop", 4, stop_reason=None)

    server.answer = answer
    result = load("openai_endpoint").main(server.url, "tiny")
    assert result.best.text == "12 - 5 = 7\nIt is 7."
    assert {body["model"] for body in server.bodies} == {"tiny"}
    assert {tuple(body["stop"]) for body in server.bodies} == {("\n",)}
