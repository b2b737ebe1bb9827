"""Primitives that strategies build on: what each computes, and which pages it touches."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
import transformers as hf
from tiny_models import EOS, byte_tokenizer, tiny_model
from transformers import PreTrainedModel
from tts_decode import (
    Branch,
    BranchReleased,
    BranchState,
    Budget,
    KVBudget,
    OutOfPages,
    SamplingParams,
    Step,
    TreeDecoder,
    gather,
)

from tts_kernels.cost import Work

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 16
PROMPT = list(b"The quick brown fox jumps over the lazy dog and runs.")  # 53 tokens: 4 pages, 5 of the last


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture
def decoder(model: PreTrainedModel) -> Iterator[TreeDecoder]:
    """A decoder whose tree must be empty again at the end of the test."""
    decoder = make(model)
    yield decoder
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)


def make(model: PreTrainedModel, **options: object) -> TreeDecoder:
    decoder = TreeDecoder(model, byte_tokenizer(), **({"kv_bytes": 1 << 24} | options))
    decoder.eos_token_ids = frozenset()  # a random model ends its texts at random
    return decoder


def pages(decoder: TreeDecoder) -> int:
    return decoder.stats().resident_bytes // decoder.stats().page_bytes


def table(branch: Branch) -> list[int]:
    tables, lengths = branch.decoder._tree.block_tables([branch.id])
    return tables[0, : -(-lengths[0] // PAGE)].tolist()


def plain_states(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Last hidden states [T, hidden] of a forward over the whole text."""
    with torch.no_grad():
        return model.base_model(torch.tensor([tokens])).last_hidden_state[0]


def plain_logprobs(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """[T, vocab] of a forward over the whole text."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=0)  # float32, other GEMM shapes


# -- hidden states (P10), models without LM head (P13)

HEADLESS = {
    "bare": hf.LlamaModel,
    "sequence class": hf.LlamaForSequenceClassification,
    "token class": hf.LlamaForTokenClassification,
}


def headless(kind: str, model: PreTrainedModel) -> PreTrainedModel:
    """The same weights without the LM head."""
    config = type(model.config).from_dict(model.config.to_dict())
    other = HEADLESS[kind](config).eval()
    other.base_model.load_state_dict(model.base_model.state_dict())
    return other


@pytest.mark.parametrize("kind", ["LM", *HEADLESS])
@pytest.mark.parametrize("chunk", [7, 512])
def test_read_gives_the_states_of_a_plain_forward(model: PreTrainedModel, kind: str, chunk: int) -> None:
    """Random forks, cuts and reads; each token is fed once, but for the last one of a cut."""
    decoder = make(model if kind == "LM" else headless(kind, model), max_batch_tokens=chunk)
    rng = random.Random(chunk)

    async def read(branch: Branch) -> None:
        tokens = [rng.randrange(256) for _ in range(rng.randint(1, 40))]
        rows = sorted(rng.sample(range(len(tokens)), rng.randint(0, len(tokens))))
        begin, fed = branch.length, decoder.stats().forward_tokens
        missing = branch.length - branch._kv_length
        states = await branch.read(tokens, rows)
        assert decoder.stats().forward_tokens - fed == missing + len(tokens)
        assert missing <= 1
        assert branch.tokens[begin:] == tokens
        close(states, plain_states(model, branch.tokens)[[begin + row for row in rows]])
        assert all(map(math.isnan, branch.logprobs[begin - branch.prompt_length :]))

    async def search() -> None:
        branches = [await decoder.root(PROMPT)]
        for _ in range(12):
            branch = rng.choice(branches)
            at = rng.choice([branch.length, rng.randint(1, branch.length)])
            branches += branch.fork(2, at=at)
            branch.truncate(rng.randint(1, branch.length))
            await read(rng.choice(branches))
        for branch in branches:
            branch.release()

    decoder.run(search())
    assert decoder.stats().resident_bytes == 0
    if kind != "LM":
        assert decoder.stats().cost.logits == Work()


def test_read_makes_no_logits_and_takes_only_the_pages_of_its_tokens(
    decoder: TreeDecoder, model: PreTrainedModel
) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        before, held = decoder.stats(), table(root)
        (child,) = root.fork()
        await child.read([7] * 30, [29])
        after = decoder.stats()
        assert after.cost.logits == before.cost.logits
        assert after.forward_tokens - before.forward_tokens == 30
        assert table(child)[:3] == held[:3]
        assert pages(decoder) == 4 + 3  # 83 tokens: the copy of the tail and two more
        assert table(root) == held
        await child.read([8] * 5, [])
        assert decoder.stats().forward_tokens - after.forward_tokens == 5
        await child.step(max_step_tokens=1)  # feeds the last token read again, for its logits
        assert decoder.stats().forward_tokens - after.forward_tokens == 6
        expected = plain_logprobs(model, child.tokens)[-2, child.tokens[-1]]
        close(torch.tensor(child.logprobs[-1]), expected)
        root.release()
        child.release()

    decoder.run(search())


@pytest.mark.parametrize("then", ["fork", "next_logprobs", "extend", "step", "truncate"])
def test_a_branch_goes_on_after_a_read(decoder: TreeDecoder, model: PreTrainedModel, then: str) -> None:
    async def search() -> None:
        branch = await decoder.root(PROMPT, SamplingParams(seed=5))
        await branch.read(b"some text".decode(), [])
        other = await decoder.root(branch.tokens, SamplingParams(seed=5))
        if then == "fork":
            child = branch.fork()[0]
            branch.release()
            branch = child
        elif then == "extend":
            close(await branch.extend("more"), await other.extend("more"))
        elif then == "step":
            await gather(b.step(max_step_tokens=4) for b in (branch, other))
            assert branch.tokens == other.tokens
        elif then == "truncate":
            branch.truncate(branch.length - 3)
        close(await branch.next_logprobs(), plain_logprobs(model, branch.tokens)[-1])
        branch.release()
        other.release()

    decoder.run(search())


def test_reads_and_steps_share_one_forward(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        reader, stepper = root.fork(2)
        await stepper.step(max_step_tokens=1)
        before = decoder.stats().steps
        states, _ = await gather(reader.read([9, 8, 7], [0, 2]), stepper.step(max_step_tokens=1))
        assert decoder.stats().steps - before == 1
        expected = plain_states(model, reader.tokens)
        close(states, expected[[len(PROMPT), len(PROMPT) + 2]])
        expected = plain_logprobs(model, stepper.tokens)
        close(torch.tensor(stepper.logprobs[1]), expected[-2, stepper.tokens[-1]])
        for branch in (root, reader, stepper):
            branch.release()

    decoder.run(search())


@pytest.mark.parametrize("kind", ["LM", "bare"])
def test_a_cancelled_read_changes_nothing(model: PreTrainedModel, kind: str) -> None:
    decoder = make(model if kind == "LM" else headless(kind, model), max_batch_tokens=16)

    async def cancelled_after(cycles: int) -> bool:
        root = await decoder.root(PROMPT)
        (branch,) = root.fork()
        await branch.read([1, 2], [])
        tokens, logprobs, resident = list(branch.tokens), len(branch.logprobs), pages(decoder)
        task = asyncio.create_task(branch.read([5] * 40, [39]))
        for _ in range(cycles):
            await asyncio.sleep(0)
        done = task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if not done and branch.tokens == tokens:
            assert (len(branch.logprobs), pages(decoder)) == (logprobs, resident)
        states = await branch.read([3], [0])
        close(states[0], plain_states(model, branch.tokens)[-1])
        root.release()
        branch.release()
        return done

    cycles = 0
    while not decoder.run(cancelled_after(cycles)):
        cycles += 1
    assert cycles > 6
    assert decoder.stats().resident_bytes == 0


def test_roots_without_logits_feed_only_what_is_not_resident(model: PreTrainedModel) -> None:
    decoder = make(headless("bare", model))

    async def search() -> None:
        root = await decoder.root(PROMPT)
        assert decoder.stats().forward_tokens == len(PROMPT)
        twin = await decoder.root(PROMPT)
        longer = await decoder.root([*PROMPT, 1, 2])
        assert decoder.stats().forward_tokens == len(PROMPT) + 2
        close((await longer.read([4], [0]))[0], plain_states(model, [*PROMPT, 1, 2, 4])[-1])
        for call in (twin.step, lambda: twin.extend([1]), twin.next_logprobs):
            with pytest.raises(TypeError, match="LlamaModel has no language-model head"):
                await call()
        for branch in (root, twin, longer):
            branch.release()

    decoder.run(search())


@pytest.mark.parametrize("rows", [[3], [1, 0], [0, 0], [-1]])
def test_read_refuses_bad_rows(decoder: TreeDecoder, rows: list[int]) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        with pytest.raises(ValueError, match=r"rows must ascend and lie in 0\.\.2, as tokens has 3"):
            await root.read([1, 2, 3], rows)
        with pytest.raises(ValueError, match="exceed the model's 512 positions"):
            await root.read([1] * 500, [0])
        assert root.tokens == PROMPT
        assert (await root.read([], [])).shape == (0, 64)
        root.release()

    decoder.run(search())


# -- one budget for several decoders (P13)


def test_decoders_on_one_budget_never_exceed_it_in_sum(model: PreTrainedModel) -> None:
    """A policy and a reader of the same pages: one grows into what the other gave back."""
    page_bytes = make(model).stats().page_bytes
    budget = KVBudget(20 * page_bytes + 5)
    policy = make(model, kv_bytes=budget)
    reader = make(headless("bare", model), kv_bytes=budget)
    greedy = SamplingParams(temperature=0)

    async def search() -> None:
        root = await policy.root(PROMPT, greedy)
        mirror = await reader.root(PROMPT)
        assert budget.resident == 8 * page_bytes
        children = root.fork(6)  # 60 tokens more: 4 full pages and the copy of the tail, 5 pages each
        tasks = [asyncio.create_task(child.step(max_step_tokens=70)) for child in children]
        for _ in range(300):
            await asyncio.sleep(0)
            assert policy.stats().resident_bytes + reader.stats().resident_bytes == budget.resident
            assert budget.resident <= budget.peak <= budget.total
        results = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [error for error in results if isinstance(error, OutOfPages)]
        assert len(errors) == 6
        assert f"a KVBudget of {budget.total} bytes, of which 2 decoders hold" in str(errors[0])
        with pytest.raises(OutOfPages, match="needs 16 more KV pages"):
            await mirror.read([1] * 260, [])
        for child in children:
            child.release()
        await mirror.read([1] * 195, [])
        assert budget.resident == (4 + 16) * page_bytes == budget.peak
        mirror.truncate(50)
        close((await mirror.read([3], [0]))[0], plain_states(model, mirror.tokens)[-1])
        mirror.release()
        await root.step(max_step_tokens=200)
        root.release()

    asyncio.run(search())
    assert budget.resident == 0


def test_a_decoder_waits_for_pages_that_another_may_give_back(model: PreTrainedModel) -> None:
    """Both at their limit: the reader's request waits while the policy works, and gets what it frees."""
    page_bytes = make(model).stats().page_bytes
    budget = KVBudget(12 * page_bytes)
    policy, reader = make(model, kv_bytes=budget), make(headless("bare", model), kv_bytes=budget)

    async def search() -> None:
        root = await policy.root(PROMPT, SamplingParams(temperature=0))  # 4 pages
        other = await policy.root([7] * 40)  # 3 pages
        mirror = await reader.root(PROMPT)  # 4 pages: 1 is left
        read = asyncio.create_task(mirror.read([1] * 40, [39]))  # 2 or 3 more
        await root.step(max_step_tokens=6)
        assert not read.done()
        other.release()
        await root.step(max_step_tokens=6)
        close((await read)[0], plain_states(model, mirror.tokens)[-1])
        late = asyncio.create_task(mirror.read([1] * 60, []))
        with pytest.raises(OutOfPages, match="more KV pages"):  # nobody else is at work
            await late
        for branch in (root, mirror):
            branch.release()

    asyncio.run(search())
    assert budget.resident == 0


@pytest.mark.parametrize(("total", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_bad_budgets(model: PreTrainedModel, total: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="total must be"):
        KVBudget(total)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kv_bytes must hold one page"):
        make(model, kv_bytes=KVBudget(100))


# -- pinned prefixes (P1)


def test_a_pinned_prefix_is_found_by_later_prompts(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        held = table(root)
        await root.step(max_step_tokens=30)
        pin = decoder.pin(root, at=50)
        root.release()
        assert (decoder.stats().branches, decoder.stats().pins, pages(decoder)) == (0, 1, 4)
        fed = decoder.stats().forward_tokens
        again = await decoder.root([*PROMPT[:50], *b"another question"])
        assert decoder.stats().forward_tokens - fed == 16
        assert table(again)[:3] == held[:3]
        assert pages(decoder) == 4 + 2  # the copy of the tail, and one more
        close(await again.next_logprobs(), plain_logprobs(model, again.tokens)[-1])
        again.release()
        with pin:
            assert pin.resident
        assert not pin.resident
        pin.release()

    decoder.run(search())


def test_pins_go_by_least_recent_use_before_pages_run_out(model: PreTrainedModel) -> None:
    page_bytes = make(model).stats().page_bytes
    decoder = make(model, kv_bytes=8 * page_bytes)
    texts = [[start] * 32 for start in (1, 2, 3)]  # two pages each

    async def search() -> None:
        pins = []
        for text in texts:
            branch = await decoder.root(text)
            pins.append(decoder.pin(branch))
            branch.release()
        (await decoder.root([*texts[0], 9])).release()  # the first is used again
        root = await decoder.root([7] * 48)
        assert [pin.resident for pin in pins] == [True, False, True]  # one page was missing
        await root.extend([8] * 32)
        assert [pin.resident for pin in pins] == [True, False, False]
        children = root.fork(3)
        with pytest.raises(OutOfPages, match=r"needs 1 more KV pages .* 0 of 8 are free"):
            await gather(branch.extend([8] * 16) for branch in (root, *children))
        assert [pin.resident for pin in pins] == [False, False, False]
        for branch in (root, *children):
            branch.release()

    decoder.run(search())
    assert (decoder.stats().pins, decoder.stats().resident_bytes) == (0, 0)


def test_a_prompt_that_goes_beyond_a_pin_uses_it(model: PreTrainedModel) -> None:
    """Also where what it found resident is a longer branch of somebody else."""
    page_bytes = make(model).stats().page_bytes
    decoder = make(model, kv_bytes=8 * page_bytes)

    async def search() -> None:
        pins = []
        for start in (1, 2):
            branch = await decoder.root([start] * 32)
            pins.append(decoder.pin(branch))
            branch.release()
        longer = await decoder.root([1] * 32 + [5] * 16)
        (await decoder.root([2] * 32 + [9])).release()
        (await decoder.root([1] * 32 + [5] * 16 + [6])).release()  # the first is used again
        longer.release()
        root = await decoder.root([7] * 80)
        assert [pin.resident for pin in pins] == [True, False]
        root.release()

    decoder.run(search())


def test_pins_of_another_decoder_on_the_budget_make_room(model: PreTrainedModel) -> None:
    page_bytes = make(model).stats().page_bytes
    budget = KVBudget(6 * page_bytes)
    first, second = make(model, kv_bytes=budget), make(model, kv_bytes=budget)

    async def search() -> None:
        branch = await first.root(PROMPT)
        pin = first.pin(branch)
        branch.release()
        other = await second.root([1] * 33)
        assert not pin.resident
        assert (first.stats().resident_bytes, budget.resident) == (0, 3 * page_bytes)
        other.release()

    asyncio.run(search())


def test_bad_pins(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        for at in (0, 54):
            with pytest.raises(ValueError, match=r"at must lie in 1\.\.53"):
                decoder.pin(root, at=at)
        with pytest.raises(ValueError, match="belongs to another decoder"):
            make(model).pin(root)
        with pytest.raises(ValueError, match="has no KV yet"):
            decoder.pin(root.fork(1, at=1)[0])
        with pytest.raises(TypeError, match="branch must be a Branch, got int"):
            decoder.pin(root.id)  # type: ignore[arg-type]
        root.release()

    decoder.run(search())


# -- end tokens and forced text (P4, P5)


def test_an_end_token_is_intercepted_and_replaced(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    """Budget forcing's recipe: the end token goes, other text comes in its place, the same pages go on."""

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(temperature=0))
        free = root.fork()[0]
        await free.step(max_step_tokens=24)
        end = free.tokens[-1]
        assert end not in free.tokens[len(PROMPT) : -1]
        decoder.eos_token_ids = frozenset([end])
        branch = root.fork()[0]
        step = await branch.step()
        assert (step.reason, branch.tokens) == ("eos", free.tokens)
        held, fed = table(branch), decoder.stats().forward_tokens
        branch.truncate(branch.length - 1)
        assert table(branch) == held  # 76 tokens: the last page begins at 64
        forced = await branch.extend("Wait, ")
        assert decoder.stats().forward_tokens - fed == 1 + 6  # the last token is fed again, for its logits
        assert table(branch)[: len(held)] == held
        assert not branch.finished
        expected = plain_logprobs(model, branch.tokens)
        close(forced, expected[range(-7, -1), branch.tokens[-6:]])
        await branch.step(max_step_tokens=3)
        close(await branch.next_logprobs(), plain_logprobs(model, branch.tokens)[-1])
        for b in (root, free, branch):
            b.release()

    decoder.run(search())


def test_a_suppressed_end_token_is_never_drawn(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(temperature=0))
        free, branch = root.fork(2)
        await free.step(max_step_tokens=10)
        end = free.tokens[-1]
        decoder.eos_token_ids = frozenset([end])
        await branch.step(max_step_tokens=40, suppress_token_ids=(end,))
        assert end not in branch.tokens[len(PROMPT) :]
        logprobs = plain_logprobs(model, branch.tokens)[len(PROMPT) - 1 : -1]
        close(torch.tensor(branch.logprobs), logprobs[range(40), branch.tokens[len(PROMPT) :]])
        logprobs[:, end] = -torch.inf
        assert branch.tokens[len(PROMPT) :] == logprobs.argmax(-1).tolist()
        for ids, text in ((range(260), "holds all 260 tokens"), ((260,), r"must lie in 0\.\.259, got 260")):
            with pytest.raises(ValueError, match=text):
                await root.step(suppress_token_ids=tuple(ids))
        for b in (root, free, branch):
            b.release()

    decoder.run(search())


# -- the log-probabilities of an answer that is not kept (P7)


def test_logprobs_of_a_continuation_leave_nothing(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    answer = list(b"The answer is 42, and that is that.")

    async def search() -> None:
        twin, branch = [await decoder.root(PROMPT, SamplingParams(seed=3)) for _ in range(2)]
        for b in (twin, branch):
            await b.step(max_step_tokens=9)
        before, held = decoder.stats(), table(branch)
        tokens, logprobs = list(branch.tokens), list(branch.logprobs)
        got = await branch.logprobs_of(answer)
        expected = plain_logprobs(model, branch.tokens + answer)
        close(got, expected[range(len(tokens) - 1, len(tokens) + len(answer) - 1), answer])
        after = decoder.stats()
        assert after.forward_tokens - before.forward_tokens == 1 + len(answer)
        assert after.peak_bytes - before.resident_bytes == 4 * after.page_bytes  # a copied tail, three more
        assert (after.resident_bytes, after.branches) == (before.resident_bytes, before.branches)
        assert (branch.tokens, branch.logprobs, table(branch)) == (tokens, logprobs, held)
        assert [b.seed for b in branch.fork(2)] == [b.seed for b in twin.fork(2)]
        task = asyncio.create_task(branch.logprobs_of(answer))
        for _ in range(4):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert decoder.stats().branches == before.branches
        twin.release()
        branch.release()

    decoder.run(search())


# -- prompts


def test_forks_know_what_the_root_was_given(decoder: TreeDecoder) -> None:
    messages = [{"role": "user", "content": "hi"}]

    async def search() -> None:
        with pytest.raises(ValueError, match="the tokenizer has no chat template: give text or token ids"):
            await decoder.root(messages)
        decoder.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}?"
        for prompt in ("some text", [1, 2, 3], messages):
            root = await decoder.root(prompt)
            (child,) = root.fork(1, at=2)
            assert child.prompt == root.prompt == prompt
            root.release()
            child.release()
        messages[0]["content"] = "changed"
        assert root.prompt == [{"role": "user", "content": "hi"}]

    decoder.run(search())


# -- saved and replayed branches (P18)


def same_numbers(branch: Branch, other: Branch) -> None:
    assert branch.tokens == other.tokens
    for name in ("logprobs", "entropies"):
        close(torch.tensor(getattr(branch, name)), torch.tensor(getattr(other, name)))


async def grown(decoder: TreeDecoder) -> Branch:
    """A branch with steps, forced text, scores and a fork behind it."""
    params = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_step_tokens=7, stop=("e",))
    root = await decoder.root(bytes(PROMPT).decode(), params)
    (branch,) = root.fork()
    await branch.step()
    await branch.extend(" forced ")
    await branch.step()
    branch.scores += [0.25, 0.5]
    for child in (root, *branch.fork(2)):
        child.release()
    return branch


def test_a_restored_branch_draws_what_the_saved_one_draws(model: PreTrainedModel) -> None:
    decoder, other = make(model), make(model)

    async def search() -> None:
        branch = await grown(decoder)
        saved = json.dumps(branch.snapshot().to_dict(), allow_nan=False)
        state = BranchState.from_dict(json.loads(saved))
        assert state == branch.snapshot()
        again = await other.restore(state)
        assert again.snapshot() == state
        assert again.steps == branch.steps
        assert again.prompt == bytes(PROMPT).decode()
        for pair in ((branch, again), *zip(branch.fork(3), again.fork(3), strict=True)):
            await gather(b.step(max_step_tokens=12) for b in pair)
            same_numbers(*pair)

    asyncio.run(search())


def test_a_branch_is_restored_on_the_pages_that_are_there(decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await grown(decoder)
        await branch.next_logprobs()  # its last token is in
        held, fed = table(branch), decoder.stats().forward_tokens
        again = await decoder.restore(branch.snapshot())
        assert decoder.stats().forward_tokens - fed == 1  # the last token, for its logits
        assert table(again)[:-1] == held[:-1]
        again.finish("answer")
        finished = await decoder.restore(again.snapshot())
        assert finished.finish_reason == "answer"
        for b in (branch, again, finished):
            b.release()

    decoder.run(search())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 7}, "got version 7, expected 1: it was written by another version"),
        ({"tokens": "abc"}, "tokens: got 'abc', expected a list of ids"),
        ({"tokens": [1, 2]}, "prompt_length: got 53, expected 1 to 2"),
        ({"logprobs": []}, "logprobs: got 0, expected"),
        ({"entropies": [0.5, "x"]}, "entropies: got"),
        ({"steps": [[53, 999, "eos"]]}, "steps: expected ascending positions from 53 to"),
        ({"steps": [[1, 2]]}, r"steps: got \[\[1, 2\]\], expected a list of \[begin, end, reason\]"),
        ({"sampling": {"heat": 1}}, "sampling: .*heat"),
        ({"sampling": {"top_p": 7}}, "sampling: top_p must lie in"),
        ({"seed": None}, "seed: got None, expected an integer"),
    ],
)
def test_damaged_states_are_refused(model: PreTrainedModel, change: dict[str, object], match: str) -> None:
    decoder = make(model)
    data = decoder.run(grown(decoder)).snapshot().to_dict()
    with pytest.raises(ValueError, match=f"branch state: {match}"):
        BranchState.from_dict(data | change)
    for name in set(data) - {"version"}:
        with pytest.raises(ValueError, match=f"branch state: {name}: got None"):
            BranchState.from_dict({key: value for key, value in data.items() if key != name})


@pytest.mark.parametrize("tokens", [1, 2, 30])
def test_a_replayed_step_leaves_the_branch_as_it_was_after_it(model: PreTrainedModel, tokens: int) -> None:
    """The same pages and numbers, at no product with the vocabulary; and the search goes on the same way."""
    decoder, other = make(model, max_batch_tokens=16), make(model, max_batch_tokens=16)
    budgets = Budget(max_tokens=100), Budget(max_tokens=100)
    params = SamplingParams(seed=5, max_tokens=tokens + 31, max_step_tokens=tokens)

    async def search() -> None:
        first = await decoder.root(PROMPT, params, budgets[0])
        second = await other.root(PROMPT, params, budgets[1])
        for _ in range(2):
            step = await first.step()
            logits = other.stats().cost.logits
            await second.replay(step)
            assert other.stats().cost.logits == logits
            assert second._kv_length == first._kv_length
            assert pages(other) == pages(decoder)
            assert (second.tokens, second.logprobs, second.steps) == (
                first.tokens,
                first.logprobs,
                first.steps,
            )
            assert second.finish_reason == first.finish_reason
            assert budgets[0].tokens_used == budgets[1].tokens_used
        await gather(b.step(max_step_tokens=6) for b in (first, second))
        same_numbers(first, second)

    asyncio.run(search())


def test_replays_end_branches_and_refuse_what_does_not_fit(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        for step, match in (
            (Step("", (1, 2), (0.0,), (0.0, 0.0), "eos"), "got 2 tokens, 1 logprobs and 2 entropies"),
            (Step("", (999,), (0.0,), (0.0,), "eos"), "token ids must lie in"),
        ):
            with pytest.raises(ValueError, match=match):
                await root.replay(step)
        with pytest.raises(TypeError, match="step must be a Step, got str"):
            await root.replay("text")  # type: ignore[arg-type]
        assert (root.tokens, root.steps) == (PROMPT, [])
        empty = root.fork()[0]
        await empty.replay(Step("", (), (), (), "budget"))
        assert (empty.finish_reason, empty.steps) == ("budget", [])
        await root.replay(Step("ab", (97, 98), (-1.0, -2.0), (1.0, 1.0), "eos"))
        assert (root.finish_reason, root.text) == ("eos", "ab")
        with pytest.raises(ValueError, match=r"is finished \(eos\): no step can follow"):
            await root.replay(Step("a", (97,), (0.0,), (0.0,), "eos"))
        root.release()
        empty.release()

    decoder.run(search())


# -- forks, ends, budgets and accounting (P2, P6, P11, P12)


def test_a_fork_at_any_past_token_leaves_its_siblings_alone(
    decoder: TreeDecoder, model: PreTrainedModel
) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(seed=2))
        first, second = root.fork(2)
        await gather(b.step(max_step_tokens=40) for b in (first, second))
        for at in (1, PAGE, len(PROMPT), 64, 65, 80, first.length):
            before = [(table(b), list(b.tokens), list(b.logprobs)) for b in (root, first, second)]
            resident = pages(decoder)
            (child,) = first.fork(1, at=at)
            assert pages(decoder) == resident  # a fork takes none
            await child.extend([7] * 20)
            shared = (at - 1) // PAGE  # whole pages; the cut's last token is fed again, for its logits
            assert table(child)[:shared] == table(first)[:shared]
            assert pages(decoder) - resident == len(table(child)) - shared
            assert [(table(b), b.tokens, b.logprobs) for b in (root, first, second)] == before
            close(await child.next_logprobs(), plain_logprobs(model, child.tokens)[-1])
            child.release()
            assert pages(decoder) == resident
        for b in (root, first, second):
            close(await b.next_logprobs(), plain_logprobs(model, b.tokens)[-1])
            b.release()

    decoder.run(search())


def test_the_losers_of_a_race_give_their_pages_back_before_the_next_forward(decoder: TreeDecoder) -> None:
    """First-Finish: the first branch that ends wins, the others are cancelled in the middle of a step."""

    async def search() -> None:
        root = await decoder.root(PROMPT)
        children = root.fork(5)
        tasks = {
            asyncio.create_task(child.step(max_step_tokens=20 + 30 * i)): child
            for i, child in enumerate(children)
        }
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        winner = tasks[done.pop()]
        for task in pending:
            task.cancel()
            tasks[task].release()
        steps = decoder.stats().steps
        assert decoder.resident_bytes([root, winner]) == decoder.stats().resident_bytes
        await winner.step(max_step_tokens=1)
        assert decoder.stats().steps - steps <= 1
        assert decoder.resident_bytes([root, winner]) == decoder.stats().resident_bytes
        assert all(task.cancelled() for task in pending)
        root.release()
        winner.release()

    decoder.run(search())


@pytest.mark.parametrize(
    "limit",
    [{"max_tokens": 40}, {"max_cost": 1.0}, {"max_seconds": 1e-9}],
)
def test_a_budget_says_what_is_used_up_and_ends_the_steps(
    decoder: TreeDecoder, limit: dict[str, float]
) -> None:
    async def search() -> None:
        budget = Budget(**limit)  # type: ignore[arg-type]
        assert budget.spent is None
        root = await decoder.root(PROMPT, budget=budget)
        children = root.fork(3)
        steps = await gather(child.step(max_step_tokens=30) for child in children)
        assert {step.reason for step in steps} == {"budget"}
        assert (budget.spent, budget.exhausted) == (*limit, True)
        assert budget.tokens_used == sum(len(step.tokens) for step in steps)
        assert budget.cost_used > 0
        assert budget.seconds_used > 0
        held = decoder.stats()
        assert [await child.step() for child in children] == [Step("", (), (), (), "budget")] * 3
        assert decoder.stats() == held
        for branch in (root, *children):
            branch.release()

    decoder.run(search())


def test_resident_bytes_count_each_page_once(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        rng = random.Random(0)
        branches = [await decoder.root(PROMPT), await decoder.root([1] * 20)]
        for _ in range(8):
            branches += rng.choice(branches).fork(2)
            await gather(b.extend([rng.randrange(256)] * rng.randint(1, 30)) for b in rng.sample(branches, 2))
        for count in (0, 1, 3, len(branches)):
            some = rng.sample(branches, count)
            distinct = {page for branch in some for page in table(branch)}
            assert decoder.resident_bytes(some) == len(distinct) * decoder.stats().page_bytes
        assert decoder.resident_bytes(branches) == decoder.stats().resident_bytes
        with pytest.raises(ValueError, match=r"branches: branch .* belongs to another decoder"):
            make(model).resident_bytes(branches)
        for branch in branches:
            branch.release()
        with pytest.raises(BranchReleased):
            decoder.resident_bytes(branches)

    decoder.run(search())


def test_a_step_keeps_its_hidden_states_whatever_other_searches_want(
    decoder: TreeDecoder, model: PreTrainedModel
) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        with_states, without = root.fork(2)
        decoder.keep_hidden += 1
        first = asyncio.ensure_future(with_states.step(max_step_tokens=6, suppress_token_ids=(EOS,)))
        while with_states.length < root.length + 2:
            await asyncio.sleep(0)
        decoder.keep_hidden -= 1
        second = asyncio.ensure_future(without.step(max_step_tokens=6, suppress_token_ids=(EOS,)))
        while without.length < root.length + 2:
            await asyncio.sleep(0)
        decoder.keep_hidden += 1
        kept, none = await gather(first, second)
        decoder.keep_hidden -= 1
        assert none.hidden is None
        close(kept.hidden, plain_states(model, with_states.tokens)[root.length :].mean(0))
        for branch in (root, with_states, without):
            branch.release()

    decoder.run(search())


def test_problems_may_fail_alone(decoder: TreeDecoder) -> None:
    async def good(number: int) -> int:
        (await decoder.root(PROMPT)).release()
        return number

    async def bad() -> int:
        raise ValueError("this one")

    first, error, last = decoder.run_all([good(1), bad(), good(3)], return_exceptions=True)
    assert (first, str(error), last) == (1, "this one", 3)
    with pytest.raises(ValueError, match="this one"):
        decoder.run_all([good(1), bad(), good(3)])


# -- embedding input (P10)


async def mixed(
    decoder: TreeDecoder, model: PreTrainedModel, forced: list[int], soft: torch.Tensor
) -> tuple[Branch, torch.Tensor]:
    """Prompt, embeddings and text in one branch, and the embeddings of all of it for a plain forward."""
    root = await decoder.root(PROMPT, SamplingParams(temperature=0))
    (branch,) = root.fork()
    root.release()
    states = await branch.extend_embeds(soft)
    await branch.extend(forced)
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        parts = [embedding(torch.tensor(PROMPT)), soft, embedding(torch.tensor(forced))]
        inputs = torch.cat(parts)[None]
        expected = model.base_model(inputs_embeds=inputs).last_hidden_state[0]
    close(states, expected[len(PROMPT) : len(PROMPT) + len(soft)])
    return branch, inputs


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen2"])
def test_embeddings_stand_in_for_tokens(family: str) -> None:
    model = tiny_model(family)
    decoder = make(model, max_batch_tokens=16)
    soft = torch.randn(20, 64, generator=torch.Generator().manual_seed(1)) * 0.3

    async def search() -> None:
        branch, inputs = await mixed(decoder, model, [5, 6, 7], soft)
        with torch.no_grad():
            logprobs = model(inputs_embeds=inputs).logits[0].log_softmax(-1)
        close(torch.tensor(branch.logprobs[-2:]), logprobs[[-3, -2], [6, 7]])
        close(await branch.next_logprobs(), logprobs[-1])
        assert branch.tokens == [*PROMPT, *[-1] * 20, 5, 6, 7]
        at = len(PROMPT) + 11  # the cut's last embedding is fed again
        (child,) = branch.fork(1, at=at)
        close(await child.next_logprobs(), logprobs[at - 1])
        branch.truncate(at + 3)
        close(await branch.next_logprobs(), logprobs[at + 2])
        await gather(branch.step(max_step_tokens=3), child.extend([1, 2]), decoder.root([3, 4]))
        with torch.no_grad():
            embedding = model.get_input_embeddings()
            again = torch.cat([inputs[0, : at + 3], embedding(torch.tensor(branch.tokens[at + 3 :]))])[None]
            logprobs = model(inputs_embeds=again).logits[0].log_softmax(-1)
        close(await branch.next_logprobs(), logprobs[-1])

    asyncio.run(search())


def test_ids_of_tokens_as_embeddings_give_what_the_ids_give(
    decoder: TreeDecoder, model: PreTrainedModel
) -> None:
    async def search() -> None:
        ids = list(b"some words")
        root = await decoder.root(PROMPT)
        by_id, by_embeds = root.fork(2)
        resident = pages(decoder)
        states = await by_id.read(ids, range(len(ids)))
        taken = pages(decoder) - resident
        close(await by_embeds.extend_embeds(model.get_input_embeddings()(torch.tensor(ids))), states)
        assert pages(decoder) - resident == 2 * taken
        close(await by_embeds.next_logprobs(), await by_id.next_logprobs())
        for b in (root, by_id, by_embeds):
            b.release()

    decoder.run(search())


def test_embeddings_have_no_text_and_match_no_prompt(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        twin = (await decoder.root(PROMPT)).fork()[0]
        for branch in (root, twin):
            await branch.extend_embeds(torch.full((3, 64), 0.1))
            await branch.extend("done")
        assert (root.text, root.full_text) == ("done", bytes(PROMPT).decode() + "done")
        await root.step(max_step_tokens=2, repetition_penalty=1.5, stop=("zz",))
        fed = decoder.stats().forward_tokens
        other = await decoder.root([*PROMPT, *b"done"])
        assert decoder.stats().forward_tokens - fed == 4
        with pytest.raises(ValueError, match="holds 3 embeddings, which a snapshot does not keep"):
            root.snapshot()
        for b in (root, twin, other):
            b.release()

    decoder.run(search())


@pytest.mark.parametrize(
    ("embeds", "error", "match"),
    [
        (torch.zeros(64), ValueError, r"embeds must have shape \[n, 64\], got \[64\]"),
        (torch.zeros(2, 32), ValueError, r"embeds must have shape \[n, 64\], got \[2, 32\]"),
        (torch.zeros(2, 64, dtype=torch.long), TypeError, "embeds must be a tensor of floating point"),
        ([[0.0] * 64], TypeError, "embeds must be a tensor of floating point, got list"),
        (torch.full((1, 64), math.nan), ValueError, "embeds must be finite"),
        (torch.zeros(500, 64), ValueError, "500 more after 53 exceed the model's 512 positions"),
    ],
)
def test_bad_embeddings(decoder: TreeDecoder, embeds: object, error: type[Exception], match: str) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        with pytest.raises(error, match=match):
            await root.extend_embeds(embeds)  # type: ignore[arg-type]
        assert root.tokens == PROMPT
        root.release()

    decoder.run(search())
