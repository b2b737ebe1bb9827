"""Bad input to a decoder and its branches: an error that says what to do; all goes on as before."""

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
        ({"kv_bytes": PAGE_BYTES - 1}, ValueError, f"kv_bytes must hold one page of {PAGE_BYTES} bytes"),
        ({"kv_bytes": -5}, ValueError, "kv_bytes must hold one page"),
        ({"kv_bytes": 1e9}, TypeError, "kv_bytes must be an integer"),
        ({"kv_bytes": 10**15}, ValueError, "kv_bytes = 1000000000000000 is more than the system grants"),
        ({"kv_dtype": torch.int8, "kv_bytes": 6191}, ValueError, "kv_bytes must hold one page of 6192 bytes"),
        ({"kv_dtype": torch.bfloat16}, ValueError, "kv_dtype must be None, torch.int8 or the model's"),
        ({"kv_dtype": "int8"}, ValueError, "kv_dtype must be None, .* got 'int8'"),
        ({"sampling": {"top_k": 3}}, TypeError, "sampling must be SamplingParams, got dict"),
        ({"max_batch_tokens": 0}, ValueError, "max_batch_tokens must be a positive integer"),
        ({"max_batch_tokens": "many"}, ValueError, "max_batch_tokens must be a positive integer"),
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
        ({"max_tokens": 0}, "max_tokens must be a positive integer"),
        ({"max_tokens": 2.5}, "max_tokens must be a positive integer"),
        ({"max_seconds": -1}, "max_seconds must be a positive number"),
        ({"max_seconds": "ten"}, "max_seconds must be a positive number"),
        ({"max_tokens": True}, "max_tokens must be a positive integer"),
        ({"max_seconds": float("nan")}, "max_seconds must be a positive number"),
        ({"max_cost": 0}, "max_cost must be a positive number of eFLOPs or None, got 0"),
        ({"max_cost": float("inf")}, "max_cost must be a positive number"),
        ({"intensity": "high"}, "intensity must be a positive number of flops per byte"),
    ],
)
def test_budget_limits(options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Budget(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ([], "prompt is empty"),
        ("", "prompt is empty"),
        ([1] * 513, "prompt has 513 tokens, but the model allows 512"),
        ([1, 260], r"token ids must lie in 0\.\.259, got 260"),
        ([-1], r"token ids must lie in 0\.\.259, got -1"),
        ("ab\udc80", "text is not valid Unicode: surrogates not allowed at 2"),
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
        ((None,), "prompt must be text, token ids or chat messages, got NoneType"),
        ((5,), "prompt must be text, token ids or chat messages, got int"),
        (({"role": "user"},), "prompt must be .* got dict"),
        (([1, 2.7],), "token ids must be integers, got 2.7"),
        ((["a"],), "token ids must be integers, got 'a'"),
        (([[1]],), r"token ids must be integers, got \[1\]"),
        ((PROMPT, {"temperature": 1}), "sampling must be SamplingParams, got dict"),
        ((PROMPT, None, 500), "budget must be a Budget, got int"),
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
    with pytest.raises(ValueError, match=r"token ids must lie in 0\.\.259, got 26\d"):
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
        (lambda b: b.fork(at=41), ValueError, r"at must lie in 1\.\.40, the branch's length, got 41"),
        (lambda b: b.fork(at=0), ValueError, "at must lie in"),
        (lambda b: b.fork(at=2.0), TypeError, "at must be an integer"),
        (lambda b: b.fork(0), ValueError, "n must be a positive integer"),
        (lambda b: b.fork(2, seeds=[1]), ValueError, "seeds must have n = 2 entries, got 1"),
        (lambda b: b.fork(1, seeds=["a"]), TypeError, "seeds must be integers, got 'a'"),
        (lambda b: b.truncate(41), ValueError, "length must lie in"),
        (lambda b: b.truncate(0), ValueError, "length must lie in"),
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
        with pytest.raises(ValueError, match="top_p must lie in"):
            await root.step(top_p=7)
        with pytest.raises(ValueError, match="token ids must lie in"):
            await root.extend([1, 999])
        with pytest.raises(ValueError, match="token ids must lie in"):
            await root.next_logprobs([999])
        with pytest.raises(TypeError, match=r"token ids must be integers, got 1\.5"):
            await root.extend([1.5])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="tokens must be text or token ids, got NoneType"):
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
