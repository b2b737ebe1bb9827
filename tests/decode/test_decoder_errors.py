"""Bad input to a decoder and its branches: the error says what to do, and everything continues as before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from small_decoders import PAGE_BYTES, PROMPT, kv_state, refused, small_decoder
from tiny_models import byte_tokenizer
from transformers import PreTrainedModel
from tts_decode import Branch, BranchReleasedError, Budget, TreeDecoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def decoder(model: PreTrainedModel) -> TreeDecoder:
    return small_decoder(model)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"kv_bytes": PAGE_BYTES - 1}, ValueError, f"expected at least one page of {PAGE_BYTES} bytes"),
        ({"kv_bytes": -5}, ValueError, "kv_bytes: got -5, expected at least one page"),
        ({"kv_bytes": 1e9}, TypeError, "kv_bytes: got 1000000000.0, expected an int"),
        ({"kv_bytes": 10**15}, ValueError, "kv_bytes: got 1000000000000000, more than the system grants"),
        ({"kv_dtype": torch.int8, "kv_bytes": 6191}, ValueError, "expected at least one page of 6192 bytes"),
        (
            {"kv_dtype": torch.bfloat16},
            ValueError,
            "kv_dtype: got torch.bfloat16, expected None, torch.int8 or the model's",
        ),
        ({"kv_dtype": "int8"}, ValueError, "kv_dtype: got 'int8', expected None, "),
        ({"sampling": {"top_k": 3}}, TypeError, "sampling: got dict, expected a SamplingParams"),
        ({"max_batch_tokens": 0}, ValueError, "max_batch_tokens: got 0, expected >= 1"),
        ({"max_batch_tokens": "many"}, ValueError, "max_batch_tokens: got 'many', expected an int"),
    ],
)
def test_decoder_options(
    model: PreTrainedModel, options: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        TreeDecoder(model, byte_tokenizer(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_tokens": 0}, "max_tokens: got 0, expected >= 1"),
        ({"max_tokens": 2.5}, "max_tokens: got 2.5, expected an int"),
        ({"max_seconds": -1}, "max_seconds: got -1, expected a number of seconds > 0"),
        ({"max_seconds": "ten"}, "max_seconds: got 'ten', expected a number of seconds > 0"),
        ({"max_tokens": True}, "max_tokens: got True, expected an int"),
        ({"max_seconds": float("nan")}, "max_seconds: got nan, expected"),
        ({"max_cost": 0}, "max_cost: got 0, expected a number of eFLOPs > 0"),
        ({"max_cost": float("inf")}, "max_cost: got inf, expected a number of eFLOPs"),
        ({"intensity": "high"}, "intensity: got 'high', expected a number of flops per byte > 0"),
    ],
)
def test_budget_limits(options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Budget(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ([], "prompt: got no tokens"),
        ("", "prompt: got no tokens"),
        ([1] * 513, "prompt has 513 tokens, but the model allows 512"),
        ([1, 260], r"tokens\[1\]: got 260, expected an id of the vocabulary, 0\.\.259"),
        ([-1], r"tokens\[0\]: got -1, expected an id of the vocabulary"),
        ("ab\udc80", "text: got surrogates not allowed at 2, expected valid Unicode"),
        ([{"role": "user", "content": "hello"}], "chat_template"),
    ],
)
def test_bad_prompts(decoder: TreeDecoder, prompt: str | list[int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        decoder.run(decoder.root(prompt))
    assert kv_state(decoder) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((None,), "prompt: got NoneType, expected text, token ids or chat messages"),
        ((5,), "prompt: got int, expected text, token ids or chat messages"),
        (({"role": "user"},), "prompt: got dict, expected .*; put the message into a list"),
        (([1, 2.7],), r"tokens\[1\]: got 2.7, expected a token id"),
        ((["a"],), r"tokens\[0\]: got 'a', expected a token id"),
        (([[1]],), r"tokens\[0\]: got \[1\], expected a token id"),
        ((PROMPT, {"temperature": 1}), "sampling: got dict, expected a SamplingParams"),
        ((PROMPT, None, 500), "budget: got int, expected a Budget"),
    ],
)
def test_a_call_of_the_wrong_types_does_not_disturb_others(
    decoder: TreeDecoder, arguments: tuple[Any, ...], match: str
) -> None:
    async def good() -> int:
        root = await decoder.root(PROMPT)
        tokens = (await root.step(max_step_tokens=3)).tokens
        root.release()
        return len(tokens)

    async def bad() -> None:
        with pytest.raises(TypeError, match=match):
            await decoder.root(*arguments)

    assert decoder.run_all([bad(), good()]) == [None, 3]
    assert kv_state(decoder) == (0, 0, 0, 0)


@pytest.mark.parametrize("tokens", [torch.tensor(PROMPT), np.array(PROMPT), tuple(PROMPT)])
def test_token_ids_may_come_in_any_sequence(decoder: TreeDecoder, tokens: Any) -> None:
    async def length() -> int:
        root = await decoder.root(tokens)
        assert root.tokens == PROMPT
        return len(await root.extend(tokens))

    assert decoder.run(length()) == len(PROMPT)


def test_a_tokenizer_of_another_model_is_named(model: PreTrainedModel) -> None:
    decoder = small_decoder(model, pages=10)
    decoder.tokenizer.add_tokens(["<much>", "<too>", "<large>", "<indeed>"])
    with pytest.raises(
        ValueError, match=r"tokens\[\d+\]: got 26\d, expected an id of the vocabulary, 0\.\.259"
    ):
        decoder.run(decoder.root("ab<indeed>"))
    assert kv_state(decoder) == (0, 0, 0, 0)


def test_a_prompt_larger_than_the_pool(model: PreTrainedModel) -> None:
    decoder = small_decoder(model, pages=2)
    message = f"needs {3 * PAGE_BYTES} bytes of KV, but kv_bytes holds {2 * PAGE_BYTES}"
    with pytest.raises(ValueError, match=message):
        decoder.run(decoder.root(PROMPT))
    assert kv_state(decoder) == (0, 0, 0, 0)


def as_awaitable(call: Callable[[Branch], object]) -> Callable[[Branch], Awaitable[object]]:
    async def use(branch: Branch) -> object:
        return call(branch)

    return use


@pytest.mark.parametrize(
    "use",
    [
        lambda branch: branch.step(),
        lambda branch: branch.extend([1]),
        lambda branch: branch.next_logprobs(),
        as_awaitable(lambda branch: branch.fork()),
        as_awaitable(lambda branch: branch.truncate(3)),
        as_awaitable(lambda branch: branch.finish()),
        as_awaitable(lambda branch: branch.release()),
    ],
    ids=["step", "extend", "next_logprobs", "fork", "truncate", "finish", "release"],
)
def test_use_after_release(decoder: TreeDecoder, use: Callable[[Branch], Awaitable[object]]) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        branch = root.fork()[0]
        branch.release()
        with refused(decoder, BranchReleasedError, f"branch {branch.id} was released"):
            await use(branch)
        await root.step(max_step_tokens=2)

    decoder.run(search())


@pytest.mark.parametrize(
    ("use", "error", "match"),
    [
        (lambda b: b.fork(at=41), ValueError, "at: got 41, expected 1 <= at <= 40"),
        (lambda b: b.fork(at=0), ValueError, "at: got 0, expected 1 <= at <= 40"),
        (lambda b: b.fork(at=2.0), TypeError, r"at: got 2\.0, expected an int"),
        (lambda b: b.fork(0), ValueError, "n: got 0, expected >= 1"),
        (lambda b: b.fork(2, seeds=[1]), ValueError, "seeds: got 1 entries, expected 2"),
        (lambda b: b.fork(1, seeds=["a"]), TypeError, r"seeds\[0\]: got 'a', expected an int"),
        (lambda b: b.truncate(41), ValueError, "length: got 41, expected 1 <= length <= 40"),
        (lambda b: b.truncate(0), ValueError, "length: got 0, expected 1 <= length <= 40"),
    ],
)
def test_bad_cuts(
    decoder: TreeDecoder, use: Callable[[Branch], object], error: type[Exception], match: str
) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        with refused(decoder, error, match):
            use(root)
        assert root.tokens == PROMPT

    decoder.run(search())


def test_bad_step_and_extend_arguments(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        before = kv_state(decoder)
        with pytest.raises(TypeError, match="temprature"):
            await root.step(temprature=0.5)
        with pytest.raises(ValueError, match="top_p: got 7, expected a finite number, 0 < top_p <= 1"):
            await root.step(top_p=7)
        with pytest.raises(ValueError, match="expected an id of the vocabulary"):
            await root.extend([1, 999])
        with pytest.raises(ValueError, match="expected an id of the vocabulary"):
            await root.next_logprobs([999])
        with pytest.raises(TypeError, match=r"tokens\[\d\]: got 1\.5, expected a token id"):
            await root.extend([1.5])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="tokens: got NoneType, expected text or token ids"):
            await root.extend(None)  # type: ignore[arg-type]
        assert (await root.next_logprobs([])).shape == (0,)
        with pytest.raises(ValueError, match="exceed the model's 512 positions"):
            await root.extend([1] * 473)
        assert kv_state(decoder) == before
        assert root.tokens == PROMPT

    decoder.run(search())


def test_a_branch_waits_once_at_a_time(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        task = asyncio.create_task(root.step(max_step_tokens=20))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already waits for the engine"):
            await root.step()
        with pytest.raises(RuntimeError, match="already waits for the engine"):
            root.truncate(5)
        assert len((await task).tokens) == 20

    decoder.run(search())


def test_releasing_a_waiting_branch_fails_its_step(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        branch = root.fork()[0]
        task = asyncio.create_task(branch.step())
        await asyncio.sleep(0)
        branch.release()
        with pytest.raises(BranchReleasedError, match="released while it waited"):
            await task
        await root.step(max_step_tokens=2)

    decoder.run(search())


def test_use_from_two_threads_at_once_is_refused(decoder: TreeDecoder) -> None:
    async def search() -> str:
        root = await decoder.root(PROMPT)
        waiting = asyncio.create_task(root.step(max_step_tokens=3))
        await asyncio.sleep(0)
        with ThreadPoolExecutor(1) as other, pytest.raises(RuntimeError, match="in use in another thread"):
            other.submit(decoder.run, decoder.root(PROMPT)).result()
        return (await waiting).reason

    assert decoder.run(search()) == "max_step_tokens"


def test_run_inside_a_running_loop(decoder: TreeDecoder) -> None:
    async def search() -> None:
        with pytest.raises(RuntimeError, match="await the coroutine instead"):
            decoder.run(decoder.root(PROMPT))
        with pytest.raises(RuntimeError, match="await the coroutine instead"):
            decoder.run_all([decoder.root(PROMPT)])
        await decoder.root(PROMPT)

    asyncio.run(search())


def test_run_of_what_is_no_coroutine(decoder: TreeDecoder) -> None:
    async def search() -> None: ...

    with pytest.raises(
        TypeError, match=r"coroutine: got function, expected a coroutine; call it: run\(f\(\)\)"
    ):
        decoder.run(search)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"coroutine: got int, expected a coroutine$"):
        decoder.run(3)  # type: ignore[arg-type]
