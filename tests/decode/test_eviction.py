"""Eviction by attention mass: the rule, and branches that decode on without the pages."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import make_case
from attention_checks import LEVELS, PAIR_LEVELS
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_tokenizer, tiny_model
from transformers import DynamicCache, PreTrainedModel
from tts_decode import Branch, BranchReleasedError, SamplingParams, TreeDecoder
from tts_decode.select import evicted_columns

from tts_kernels import _core, reference, tree_attention_with_mass

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 16
PROMPT = list(b"The quick brown fox jumps over the lazy dog. " * 4)


# --- the rule


@st.composite
def branches(draw: st.DrawFn) -> tuple[list[list[int]], list[list[float]]]:
    """Tables that share some pages of a trunk, with holes, and masses with ties."""
    trunk = draw(st.integers(0, 12))
    tables, masses = [], []
    for b in range(draw(st.integers(1, 4))):
        table = [c if draw(st.integers(0, 5)) else -1 for c in range(trunk)]
        table += [100 * (b + 1) + c for c in range(draw(st.integers(0 if trunk else 1, 4)))]
        tables.append(table)
        masses.append([float(draw(st.integers(0, 3))) for _ in table])
    return tables, masses


@given(branches(), st.integers(1, 14), st.integers(0, 3), st.integers(1, 4))
def test_the_least_mass_goes_first(
    given: tuple[list[list[int]], list[list[float]]], keep: int, sink: int, recent: int
) -> None:
    tables, masses = given
    arrays = [np.array(t, np.int32) for t in tables], [np.array(m, np.float32) for m in masses]
    found = evicted_columns(*arrays, keep, sink=sink, recent=recent)
    may_go = [
        column
        for column in range(sink, max(map(len, tables)))
        if all(column < len(t) - recent and t[column] == tables[0][column] >= 0 for t in tables)
    ]
    total = {column: sum(m[column] for m in masses) for column in may_go}
    count = max(0, min(sum(page >= 0 for page in t) for t in tables) - keep)
    assert found == sorted(sorted(may_go, key=lambda column: (total[column], column))[:count])


def test_of_no_branches_nothing_goes() -> None:
    assert evicted_columns([], [], 1) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"keep": 0}, ValueError, "keep: got 0, expected >= 1"),
        ({"keep": 2.0}, TypeError, r"keep: got 2\.0, expected an int"),
        ({"keep": True}, TypeError, "keep: got True"),
        ({"sink": -1}, ValueError, "sink: got -1, expected >= 0"),
        ({"recent": 0}, ValueError, "recent: got 0, expected >= 1"),
        ({"masses": []}, ValueError, "masses: got 0 for 1 tables"),
        (
            {"masses": [np.zeros(3, np.float32)]},
            ValueError,
            r"masses\[0\]: got shape \(3,\), expected \(2,\)",
        ),
        (
            {"masses": [np.array([0, np.nan], np.float32)]},
            ValueError,
            r"masses\[0\]\[1\]: got nan, expected a finite number",
        ),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"tables": [np.arange(2, dtype=np.int32)], "masses": [np.ones(2, np.float32)]}
    with pytest.raises(error, match=message):
        evicted_columns(**(good | {"keep": 1} | change))


# --- attention


@settings(max_examples=40)
@given(st.data(), st.sampled_from(LEVELS), st.sampled_from([torch.float32, torch.bfloat16]))
def test_nobody_attends_to_an_evicted_page(data: st.DataObject, level: str, dtype: torch.dtype) -> None:
    lengths = data.draw(st.lists(st.integers(1, 400), min_size=1, max_size=5))
    parents = [
        (data.draw(st.integers(0, max(b - 1, 0))), data.draw(st.integers(0, 300)) if b else 0)
        for b in range(len(lengths))
    ]
    query_lens = [min(data.draw(st.sampled_from([1, 1, 1, 20])), length) for length in lengths]
    case = make_case(lengths, parents, query_lens, dtype=dtype)
    for branch, (length, queries) in enumerate(zip(lengths, query_lens, strict=True)):
        for column in data.draw(st.lists(st.integers(0, 24), max_size=6)):
            if column < (length - queries) // PAGE:
                case.tables[branch, column] = -1
    window = data.draw(st.sampled_from([None, None, 100]))
    args = (case.q, case.k_slots, case.v_slots, case.tables, case.lengths, case.query_lens)
    expected = reference.tree_attention(*args, window=window)
    _core.set_cpu_isa(level)
    try:
        plan = case.plan(query_block=data.draw(st.sampled_from([1, 32])))
        found = tree_attention_with_mass(case.q, *case.pool.layer(0), plan, window=window)
    finally:
        _core.set_cpu_isa(None)
    pairs = level in PAIR_LEVELS and dtype == torch.bfloat16
    tolerances = [
        {"rtol": 2**-8 if dtype == torch.bfloat16 else 1e-5, "atol": 2**-8 if pairs else 5e-5},
        {"rtol": 1e-6, "atol": 5e-5},
        {"rtol": 1e-4, "atol": 2e-6},
    ]
    for value, reference_value, tolerance in zip(found, expected, tolerances, strict=True):
        torch.testing.assert_close(value.double(), reference_value, **tolerance)


# --- branches


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


def make(model: PreTrainedModel, **options: Any) -> TreeDecoder:
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 22, **options)
    decoder.eos_token_ids = frozenset()  # a random model ends its texts at random
    return decoder


@pytest.fixture
def decoder(model: PreTrainedModel) -> TreeDecoder:
    return make(model, track_mass=True, sampling=SamplingParams(max_step_tokens=20))


def table(branch: Branch) -> list[int]:
    pages: list[int] = branch.decoder.runtime.tree.block_tables([branch.id])[0][0].tolist()
    return pages


def expected_logprobs(
    model: PreTrainedModel, seen_by_all: list[int], rest: list[int], holes: list[int]
) -> Any:
    """Next-token distribution after `rest`, whose tokens do not see the columns `holes` of `seen_by_all`."""
    cache = DynamicCache()
    with torch.inference_mode():
        model(torch.tensor([seen_by_all]), past_key_values=cache)
        length = len(seen_by_all) + len(rest)
        mask = torch.ones((1, length), dtype=torch.long)
        for column in holes:
            mask[:, column * PAGE : (column + 1) * PAGE] = 0
        positions = torch.arange(len(seen_by_all), length)[None]
        output = model(
            torch.tensor([rest]), past_key_values=cache, attention_mask=mask, position_ids=positions
        )
    return output.logits[0, -1].log_softmax(-1)


def test_masses_are_those_of_the_tokens_fed(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        assert root.masses().sum() == pytest.approx(len(PROMPT), rel=1e-5)
        [child, short] = root.fork() + root.fork(at=50)
        assert (child.masses() == root.masses()).all()
        assert len(short.masses()) == 4  # its last token is not in yet
        before = short.masses().sum()
        await child.extend(b"and then")
        await short.next_logprobs()
        assert child.masses().sum() == pytest.approx(len(PROMPT) + 8, rel=1e-5)
        assert short.masses().sum() == pytest.approx(before + 1, rel=1e-5)
        assert root.masses().sum() == pytest.approx(len(PROMPT), rel=1e-5)
        child.truncate(33)
        assert (child.masses() >= root.masses()[:2]).all()

    decoder.run(search())


def test_evicted_branches_decode_on_as_if_those_tokens_were_masked(
    decoder: TreeDecoder, model: PreTrainedModel
) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        [child] = root.fork()
        resident = decoder.stats().resident_bytes
        expected = evicted_columns([np.array(table(root), np.int32)], [root.masses()], 7)
        assert root.evict(7) == 0  # the child holds them
        assert [c for c, page in enumerate(table(root)) if page < 0] == expected
        assert len(expected) == len(table(root)) - 7 > 2
        assert child.evict(100) == 0
        assert min(table(child)) >= 0
        assert child.evict(7) == len(expected)
        assert child.evict(7) == 0
        assert table(child) == table(root)
        page_bytes = decoder.stats().page_bytes
        assert decoder.stats().resident_bytes == resident - len(expected) * page_bytes

        forced = list(b"It runs on and on.")
        await root.extend(forced)
        grandchild = root.fork()[0]
        await child.step()
        await grandchild.extend(b"!")
        for branch in (root, child, grandchild):
            rest = branch.tokens[len(PROMPT) :]
            torch.testing.assert_close(
                await branch.next_logprobs(),
                expected_logprobs(model, PROMPT, rest, expected),
                atol=2e-4,  # float32, other GEMM shapes
                rtol=0,
            )
        assert bytes(root.tokens) == bytes(PROMPT + forced)

    decoder.run(search())


def test_siblings_give_up_what_all_of_them_hold(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        [left, right] = root.fork(2)
        await left.extend(b"left " * 8)
        await right.extend(b"right " * 8)
        before = [table(branch) for branch in (left, right)]
        root.release()
        freed = decoder.evict([left, right], 8, recent=2)
        after = [table(branch) for branch in (left, right)]
        holes = [c for c, page in enumerate(after[0]) if page < 0]
        assert freed == len(holes) == min(map(len, before)) - 8
        for old, new in zip(before, after, strict=True):
            assert new == [-1 if c in holes else page for c, page in enumerate(old)]
        assert 0 not in holes

    decoder.run(search())


def test_a_branch_cannot_be_cut_in_an_evicted_page(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        root.evict(6)
        first = table(root).index(-1)
        cut = first * PAGE + 5
        state = root.length, table(root), root.fork_count
        with pytest.raises(ValueError, match=f"at: got {cut - 1}, but positions {first * PAGE} to"):
            root.fork(at=cut)
        with pytest.raises(ValueError, match="length: got"):
            root.truncate(cut)
        assert (root.length, table(root), root.fork_count) == state
        root.truncate(first * PAGE + 1)  # its last token is fed again
        assert min(table(root)) >= 0

    decoder.run(search())


def test_what_cannot_be_evicted_is_refused(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        [busy, gone, other] = root.fork(3)
        gone.release()
        task = asyncio.create_task(busy.step())
        await asyncio.sleep(0)
        stranger = await make(model, track_mass=True).root(PROMPT)
        blind = make(model)
        unseen = await blind.root(PROMPT)
        calls: list[tuple[Any, type[Exception], str]] = [
            (lambda: busy.evict(3), RuntimeError, "already waits for the engine"),
            (lambda: decoder.evict([other, gone], 3), BranchReleasedError, "was released"),
            (lambda: unseen.evict(3), RuntimeError, "track_mass=True"),
            (lambda: decoder.evict([other, stranger], 3), ValueError, "of another decoder"),
            (lambda: decoder.evict([other, other], 3), ValueError, "twice"),
            (lambda: decoder.evict([other, 3], 3), TypeError, ": got int, expected Branch objects"),  # type: ignore[list-item]
            (lambda: other.evict(0), ValueError, "keep: got 0, expected >= 1"),
            (lambda: other.evict(3, recent=1), ValueError, "recent: got 1, expected >= 2"),
        ]
        before = decoder.runtime.tree.stats().resident_pages, table(other)
        for call, error, message in calls:
            with pytest.raises(error, match=message):
                call()
        assert (decoder.runtime.tree.stats().resident_pages, table(other)) == before
        await task

    decoder.run(search())
