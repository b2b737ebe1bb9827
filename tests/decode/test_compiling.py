"""Grammars are compiled once, beside the event loop, for each tokenizer, and kept while they are in use."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from constrained import Pairs, params
from primitives import PROMPT, make
from tiny_models import byte_tokenizer
from transformers import PreTrainedModel
from tts_decode import Choice, ConstraintError, JSONSchema, Regex, TreeDecoder, gather

llguidance = pytest.importorskip("llguidance")
from tts_decode.core.constraints import compiler  # noqa: E402  # needs llguidance
from tts_decode.core.constraints.matcher import MatcherState  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


class Compilations:
    """The threads in which grammars were compiled. before: called in each of them first."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.before: Callable[[], object] = lambda: None

    def __call__(self, *args: object, **options: object) -> object:
        self.threads.append(threading.get_ident())
        self.before()
        return llguidance.LLMatcher(*args, **options)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Compilations:
    counted = Compilations()
    monkeypatch.setattr(compiler, "LLMatcher", counted)
    return counted


def test_each_once_whoever_asks(model: PreTrainedModel, compilations: Compilations) -> None:
    decoder = make(model)

    async def search() -> None:
        sampling = params(Regex("[a-f]{6}"), max_step_tokens=3)
        compiled = decoder.compile(Regex("[a-f]{6}"))
        *roots, _ = await gather(*(decoder.root(PROMPT, sampling) for _ in range(4)), compiled)
        await gather(root.step() for root in roots)
        again = await decoder.restore(roots[0].snapshot())
        free = await decoder.root(PROMPT)
        await free.step(constraint=Regex("[a-f]{6}"), max_step_tokens=2)
        assert len(compilations.threads) == 1
        assert (again.tokens, free.text.strip("abcdef")) == (roots[0].tokens, "")

    asyncio.run(search())
    assert threading.get_ident() not in compilations.threads


@pytest.mark.parametrize("call", ["root", "step", "stream", "compile"])
def test_others_go_on_meanwhile(model: PreTrainedModel, compilations: Compilations, call: str) -> None:
    decoder, goes_on = make(model), threading.Event()
    compilations.before = lambda: goes_on.wait(60)
    constraint = Choice([f"only here, for {call}"])

    async def search() -> None:
        branch = await decoder.root(PROMPT, params(None))
        if call == "stream":
            waiting = asyncio.ensure_future(anext(branch.stream(constraint=constraint)))
        else:
            waiting = asyncio.ensure_future(
                {
                    "root": lambda: decoder.root(PROMPT, params(constraint)),
                    "step": lambda: branch.step(constraint=constraint),
                    "compile": lambda: decoder.compile(constraint),
                }[call]()
            )
        other = await decoder.root(PROMPT, params(None, max_step_tokens=5))
        assert len((await other.step()).tokens) == 5
        assert not waiting.done()
        goes_on.set()
        await waiting

    try:
        asyncio.run(search())
    finally:
        goes_on.set()
    assert len(compilations.threads) == 1


def test_the_last_ones_are_kept(
    model: PreTrainedModel, compilations: Compilations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch continues with one that is no longer kept."""
    monkeypatch.setattr(compiler, "KEPT", 2)
    decoder = make(model)
    one, two, three = (Regex(f"{letter}{{8}}") for letter in "abc")

    async def search() -> None:
        branch = await decoder.root(PROMPT, params(one, max_step_tokens=4))
        for constraint in (two, one, three):  # two goes
            await decoder.compile(constraint)
        assert len(compilations.threads) == 3
        await decoder.compile(one)
        assert len(compilations.threads) == 3
        await decoder.compile(two)  # one is the oldest but one use: three stays
        await decoder.compile(three)
        assert len(compilations.threads) == 5
        await branch.step()
        await branch.fork()[0].step()
        assert branch.text == "aaaa"

    asyncio.run(search())


def test_a_malformed_one_is_refused_each_time(model: PreTrainedModel, compilations: Compilations) -> None:
    decoder = make(model)

    async def search() -> None:
        refused = await asyncio.gather(
            *(decoder.compile(JSONSchema({"type": "objec"})) for _ in range(3)), return_exceptions=True
        )
        assert [type(error) for error in refused] == [ConstraintError] * 3
        with pytest.raises(ConstraintError, match="schema: got what llguidance refuses"):
            await decoder.compile(JSONSchema({"type": "objec"}))
        with pytest.raises(TypeError, match="constraint: got 'x', expected a Constraint"):
            await decoder.compile("x")  # type: ignore[arg-type]
        await decoder.compile(Pairs())

    asyncio.run(search())


def test_tokenizers_go_when_nobody_else_holds_them(compilations: Compilations) -> None:
    """And each has grammars of its own, other ones after tokens were added."""
    tokenizer, other = byte_tokenizer(), byte_tokenizer("<tag>")
    sizes = [len(Regex("[a-z]+").start(one).mask()) for one in (tokenizer, other, tokenizer)]
    assert sizes == [257, 258, 257]
    assert len(compilations.threads) == 2
    tokenizer.add_tokens(["<more>"])
    mask = Regex("[a-z]+").start(tokenizer).mask()
    assert np.flatnonzero(mask).tolist() == list(b"abcdefghijklmnopqrstuvwxyz")
    assert len(mask) == 258
    gone = [weakref.ref(one) for one in (tokenizer, other)]
    del tokenizer, other
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_a_fork_copies_once() -> None:
    class Matcher:
        copies = 0

        def deep_copy(self) -> Matcher:
            Matcher.copies += 1
            return self

    state = MatcherState(Matcher(), 5)  # type: ignore[arg-type]
    Matcher.copies = 0
    state.fork()
    assert Matcher.copies == 1


def test_forks_share_what_was_computed_for_their_place() -> None:
    state = Regex("[a-z]+[0-9]").start(byte_tokenizer())
    assert state.advance(97)
    mask = state.mask()
    fork = state.fork()
    assert fork.mask() is mask
    assert fork.advance(48)
    assert np.flatnonzero(fork.mask()).tolist() == []
    assert state.mask() is mask
    fork.rollback(1)
    assert np.array_equal(fork.mask(), mask)


def test_the_package_need_not_be_there_for_a_constraint_in_python(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    decoder: TreeDecoder = make(model)

    async def search() -> None:
        await decoder.compile(Pairs())
        branch = await decoder.root(PROMPT, params(Pairs(), max_step_tokens=4))
        assert (await branch.step()).text[1::2] == ";;"
        with pytest.raises(ImportError, match=r"tts-kernels\[grammar\]"):
            await decoder.compile(Regex("b"))

    asyncio.run(search())
