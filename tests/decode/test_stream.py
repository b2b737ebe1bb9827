"""Tokens as they come: pieces add up to the step and hold back what may become a stop string."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from primitives import PROMPT, make
from tiny_models import EOS, byte_tokenizer, tiny_model
from tiny_tokenizers import VOCABULARIES
from transformers import PreTrainedModel
from tts_decode import (
    Branch,
    BranchReleasedError,
    Choice,
    SamplingParams,
    StaleKVError,
    Step,
    StepPiece,
    TextDecoder,
    TreeDecoder,
    UnsupportedByEngineError,
    gather,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def joined(pieces: list[StepPiece]) -> Step:
    """The step that the pieces add up to."""
    assert [piece.reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    reason = pieces[-1].reason
    assert reason is not None
    return Step(
        "".join(piece.text for piece in pieces),
        *(
            tuple(value for piece in pieces for value in getattr(piece, name))
            for name in ("tokens", "logprobs", "entropies")
        ),
        reason,
        top_logprobs=tuple(top for piece in pieces for top in piece.top_logprobs),
        self_certainties=tuple(value for piece in pieces for value in piece.self_certainties),
    )


async def pieces_of(branch: Branch, **overrides: object) -> list[StepPiece]:
    return [piece async for piece in branch.stream(**overrides)]


SETTINGS = [
    SamplingParams(seed=1, max_step_tokens=30),
    SamplingParams(seed=2, max_step_tokens=30, top_logprobs=2, self_certainty=True, frequency_penalty=1.0),
    SamplingParams(seed=3, max_tokens=9),
    SamplingParams(seed=4, max_step_tokens=200, stop=("e", "aaa", "\n\n")),
    SamplingParams(seed=5, max_step_tokens=60, stop_token_ids=tuple(range(60, 90))),
    SamplingParams(temperature=0.0, max_step_tokens=25, stop="zzz"),
]


@pytest.mark.parametrize("params", SETTINGS)
def test_pieces_add_up_to_the_step(model: PreTrainedModel, params: SamplingParams) -> None:
    """The next step and the branch itself continue alike, also together with others in the batch."""
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT, params)
        streamed, stepped, *others = root.fork(4, seeds=[params.seed, params.seed, 8, 9])
        _, pieces = await gather(gather(other.step() for other in others), pieces_of(streamed))
        step = await stepped.step()
        assert joined(pieces) == step
        assert streamed.steps == [step]
        assert streamed.snapshot() == stepped.snapshot()
        assert len(pieces) > 1 or len(step.tokens) == 1
        assert await streamed.step() == joined(await pieces_of(stepped))
        if streamed.finished:
            assert await pieces_of(streamed) == [StepPiece("", (), (), (), streamed.finish_reason)]

    asyncio.run(search())


def test_tokens_come_one_by_one(model: PreTrainedModel) -> None:
    """A piece arrives before the next token is drawn, and others continue meanwhile."""
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=6))
        streamed, other = root.fork(2)
        task = asyncio.ensure_future(other.step(max_step_tokens=12))
        lengths = []
        async for piece in streamed.stream():
            lengths.append((len(piece.tokens), streamed.length - len(PROMPT)))
        assert lengths == [(1, i) for i in range(1, 7)]
        assert len((await task).tokens) == 12

    asyncio.run(search())


WORDS = "ab日é☃ \n"


@given(st.text(WORDS, min_size=1, max_size=30), st.lists(st.text(WORDS, min_size=1, max_size=4), max_size=3))
@settings(max_examples=80)
def test_no_piece_shows_a_part_of_a_character_or_of_a_stop_string(text: str, stops: list[str]) -> None:
    """The text is the only one that the constraint allows, byte by byte."""
    pytest.importorskip("llguidance")

    async def search() -> None:
        branch = await DECODER.root(PROMPT, SamplingParams(stop=stops, constraint=Choice([text])))
        pieces = await pieces_of(branch)
        step = joined(pieces)
        end = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=len(text))
        assert step.text == text[:end]
        found = [len(stop) for stop in stops if step.text.endswith(stop)]
        assert step.reason == ("stop_string" if found else "complete")
        shown = "".join(piece.text for piece in pieces[:-1])
        assert len(shown) <= end - max(found, default=0)
        branch.release()

    asyncio.run(search())


DECODER = make(tiny_model())


@pytest.mark.parametrize("how", ["break", "cancel"])
def test_whoever_stops_leaves_the_branch_as_a_cancelled_step(model: PreTrainedModel, how: str) -> None:
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=20))
        streamed, stepped = root.fork(2, seeds=[3, 3])
        other = asyncio.ensure_future(root.step())

        async def read() -> None:
            async with aclosing(streamed.stream()) as pieces:
                async for _ in pieces:
                    if streamed.length == len(PROMPT) + 4:
                        if how == "break":
                            return
                        task.cancel()

        task = asyncio.ensure_future(read())
        await asyncio.wait([task])
        assert task.cancelled() == (how == "cancel")
        assert not streamed.busy
        assert streamed.steps == []
        got = streamed.length - len(PROMPT)
        assert 4 <= got < 20
        await stepped.step()
        await streamed.step(max_step_tokens=20 - got)  # it continues
        assert streamed.tokens == stepped.tokens
        assert len((await other).tokens) == 20

    asyncio.run(search())


@pytest.mark.parametrize("change", ["truncate", "step", "extend"])
def test_the_last_piece_is_the_steps_whatever_became_of_the_branch(
    model: PreTrainedModel, change: str
) -> None:
    """A slow consumer reads it when the branch is already another one."""
    decoder = make(model)

    async def search() -> None:
        sampling = SamplingParams(max_step_tokens=8, top_logprobs=2, stop="zzz")
        root = await decoder.root(PROMPT, sampling)
        streamed, stepped, other = root.fork(3, seeds=[3, 3, 4])
        step = await stepped.step()
        stream = streamed.stream()
        pieces = [await anext(stream)]
        await other.step(max_step_tokens=20)
        assert not streamed.busy
        if change == "truncate":
            streamed.truncate(len(PROMPT) + 3)
        elif change == "extend":
            await streamed.extend("forced")
        else:
            await streamed.step()
        pieces += [piece async for piece in stream]
        assert joined(pieces) == step

    asyncio.run(search())


def test_a_stream_that_is_not_read_does_nothing(model: PreTrainedModel) -> None:
    decoder = make(model)

    async def search() -> None:
        branch = await decoder.root(PROMPT, SamplingParams(max_step_tokens=3))
        unread = branch.stream()
        assert not branch.busy
        assert len((await branch.step()).tokens) == 3
        await unread.aclose()
        assert branch.length == len(PROMPT) + 3

    asyncio.run(search())


def test_errors_are_those_of_a_step(model: PreTrainedModel) -> None:
    decoder = make(model)

    async def search() -> None:
        branch = await decoder.root(PROMPT, SamplingParams(max_step_tokens=30))
        with pytest.raises(TypeError, match="temprature"):
            await pieces_of(branch, temprature=1)
        stream = branch.stream()
        await anext(stream)
        for call in (branch.step(), anext(branch.stream())):
            with pytest.raises(RuntimeError, match="already waits"):
                await call
        branch.release()
        with pytest.raises(BranchReleasedError):
            async for _ in stream:
                pass
        stale = await decoder.root(PROMPT, SamplingParams(max_step_tokens=30))
        stream = stale.stream()
        await anext(stream)
        decoder.weights_changed()
        with pytest.raises(StaleKVError):
            async for _ in stream:
                pass

    asyncio.run(search())


def test_the_end_of_the_sequence_is_in_the_last_piece(model: PreTrainedModel) -> None:
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 22)

    async def search() -> None:
        branch = await decoder.root(PROMPT, SamplingParams(logit_bias={EOS: 6.0}, seed=1))
        pieces = await pieces_of(branch)
        assert pieces[-1].reason == "eos"
        assert pieces[-1].tokens[-1] == EOS
        assert branch.finish_reason == "eos"

    asyncio.run(search())


@pytest.mark.parametrize("name", ["llama2", "slow", "word_piece"])
def test_other_vocabularies_add_up_too(name: str) -> None:
    vocabulary = VOCABULARIES[name]()
    decoder = TreeDecoder(tiny_model(vocab_size=400), vocabulary.tokenizer, kv_bytes=1 << 22)
    decoder.eos_token_ids = frozenset()

    async def search() -> None:
        root = await decoder.root([5, 6, 7], SamplingParams(max_step_tokens=40, stop=("qq", "☃☃")))
        streamed, stepped = root.fork(2, seeds=[1, 1])
        assert joined(await pieces_of(streamed)) == await stepped.step()

    asyncio.run(search())


def test_a_text_engine_refuses_it_by_its_name() -> None:
    async def complete(_: object) -> None:
        raise AssertionError

    decoder = TextDecoder(complete)  # type: ignore[arg-type]

    async def search() -> None:
        branch = await decoder.root("text")
        with pytest.raises(UnsupportedByEngineError, match=r"Branch\.stream"):
            branch.stream()

    asyncio.run(search())
