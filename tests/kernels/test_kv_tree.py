"""KVTree against a plain model that stores every branch's tokens whole, in random programs of calls."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tts_kernels import KVTree, OutOfPagesError

PAGE_SIZE = 4
NUM_PAGES = 20
OFFLOAD_PAGES = 6
_new_page = itertools.count().__next__


@dataclass
class Holder:
    """A branch or pin of the model. `pages` are names of its pages, equal where one is shared, None where it
    was evicted. `mixed`: names of pages that were compacted."""

    tokens: list[int] = field(default_factory=list)
    pages: list[int | None] = field(default_factory=list)
    pinned: bool = False
    mixed: frozenset[int | None] = frozenset()

    def prefix(self, length: int, pinned: bool = False) -> Holder:
        return Holder(self.tokens[:length], self.pages[: -(-length // PAGE_SIZE)], pinned, self.mixed)

    def ends_in_a_hole(self, length: int) -> bool:
        return length > 0 and self.lacks_its_tokens((length - 1) // PAGE_SIZE)

    def lacks_its_tokens(self, column: int) -> bool:
        return self.pages[column] is None or self.pages[column] in self.mixed

    def tokens_held(self) -> list[int]:
        """Its tokens, -1 where they were evicted or compacted."""
        return [
            -1 if self.lacks_its_tokens(position // PAGE_SIZE) else token
            for position, token in enumerate(self.tokens)
        ]


class Model(dict[int, Holder]):
    def append(self, branch: int, tokens: list[int]) -> None:
        holder = self[branch]
        others = {page for id_, other in self.items() if id_ != branch for page in other.pages}
        if tokens and len(holder.tokens) % PAGE_SIZE and holder.pages[-1] in others:
            holder.pages[-1] = _new_page()
        holder.tokens += tokens
        while len(holder.pages) * PAGE_SIZE < len(holder.tokens):
            holder.pages.append(_new_page())

    def visible_slots(self) -> dict[int, int]:
        """For each resident page, how many of its slots its longest holder sees."""
        visible: dict[int, int] = {}
        for holder in self.values():
            for column, page in enumerate(holder.pages):
                if page is None:
                    continue
                seen = min(PAGE_SIZE, len(holder.tokens) - column * PAGE_SIZE)
                visible[page] = max(visible.get(page, 0), seen)
        return visible

    def longest_match(self, tokens: list[int]) -> tuple[int, int] | None:
        def common(holder: Holder) -> int:
            pairs = zip(holder.tokens_held(), tokens, strict=False)
            return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

        best = max(self, key=lambda id_: (common(self[id_]), -id_), default=None)
        return None if best is None or common(self[best]) == 0 else (best, common(self[best]))

    def evict(self, branches: list[int], columns: list[int]) -> bool:
        """Whether the tree is to do it."""
        pinned = {page for holder in self.values() if holder.pinned for page in holder.pages}
        for branch in branches:
            inner = self[branch].pages[:-1]
            for column in columns:
                if not 0 <= column < len(inner) or inner[column] is None or inner[column] in pinned:
                    return False
        for branch, column in itertools.product(branches, columns):
            self[branch].pages[column] = None
        return True

    def own_columns(self, branch: int) -> list[int]:
        """Those before its last whose pages nobody else holds."""
        others = {page for id_, other in self.items() if id_ != branch for page in other.pages}
        inner = self[branch].pages[:-1]
        return [c for c, page in enumerate(inner) if page is not None and page not in others]


class TreeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree = KVTree(NUM_PAGES, PAGE_SIZE, OFFLOAD_PAGES)
        self.model = Model()
        self.offloaded: set[int] = set()  # names of the model's pages
        self.peak = 0
        # What the caller keeps: per slot the (token, position) last written, standing for its K and V.
        self.kv = np.full((NUM_PAGES + OFFLOAD_PAGES, PAGE_SIZE, 2), -1)

    def branches(self) -> list[int]:
        return [id_ for id_, holder in self.model.items() if not holder.pinned]

    def pick(self, data: st.DataObject, ids: list[int]) -> int:
        return data.draw(st.sampled_from(sorted(ids)))

    def pick_prefix(self, data: st.DataObject) -> tuple[int, int | None, int]:
        """A holder, a value of `at`, and the length that it means."""
        id_ = self.pick(data, list(self.model))
        length = len(self.model[id_].tokens)
        at = data.draw(st.none() | st.integers(0, length))
        return id_, at, length if at is None else at

    @rule()
    def create(self) -> None:
        id_ = self.tree.create()
        assert id_ not in self.model
        self.model[id_] = Holder()

    @precondition(lambda self: self.model)
    @rule(data=st.data(), n=st.integers(0, 3))
    def fork(self, data: st.DataObject, n: int) -> None:
        source, at, length = self.pick_prefix(data)
        if self.model[source].ends_in_a_hole(length):
            self.refused(f"at: got {length}, but positions", lambda: self.tree.fork(source, n, at))
            return
        children = self.tree.fork(source, n, at)
        assert len(set(children) - set(self.model)) == n == len(children)
        for child in children:
            self.model[child] = self.model[source].prefix(length)

    @precondition(lambda self: self.branches())
    @rule(data=st.data(), as_arrays=st.booleans())
    def append(self, data: st.DataObject, as_arrays: bool) -> None:
        branches = data.draw(st.permutations(self.branches()))
        branches = branches[: data.draw(st.integers(1, len(branches)))]
        tokens = [data.draw(st.lists(st.integers(0, 2), max_size=6)) for _ in branches]
        bound = sum(self.tree.pages_needed(b, len(t)) for b, t in zip(branches, tokens, strict=True))
        given: Any = [np.array(t, np.int64) for t in tokens] if as_arrays else tokens
        ids: Any = np.array(branches) if as_arrays else branches

        model, before = copy.deepcopy(self.model), self.snapshot()
        if any(new and self.ends_offloaded(b) for b, new in zip(branches, tokens, strict=True)):
            self.refused("whose last page is offloaded", lambda: self.tree.append(ids, given))
            return
        for branch, new in zip(branches, tokens, strict=True):
            model.append(branch, new)
        if len(model.visible_slots().keys() - self.offloaded) > NUM_PAGES:
            with pytest.raises(OutOfPagesError, match=f"of {NUM_PAGES} free"):
                self.tree.append(ids, given)
            assert self.snapshot() == before
            return

        free = self.tree.free_pages
        done = self.tree.append(ids, given)
        assert free - self.tree.free_pages <= bound
        assert done.slots.dtype == done.copies.dtype == np.int32
        assert len(set(done.slots.tolist())) == len(done.slots) == sum(map(len, tokens))
        for source, target in done.copies:
            self.kv[target] = self.kv[source]
        slots = iter(done.slots)
        for branch, new in zip(branches, tokens, strict=True):
            start = len(self.model[branch].tokens)
            for position, token in enumerate(new, start):
                self.kv.reshape(-1, 2)[next(slots)] = token, position
        self.model = model

    def ends_offloaded(self, branch: int) -> bool:
        """Whether its last page is offloaded and has room."""
        holder = self.model[branch]
        return len(holder.tokens) % PAGE_SIZE > 0 and holder.pages[-1] in self.offloaded

    @rule(data=st.data(), as_array=st.booleans())
    def offload(self, data: st.DataObject, as_array: bool) -> None:
        names = self.names()
        resident = [page for page, name in names.items() if name not in self.offloaded]
        pages = data.draw(
            st.lists(st.sampled_from(resident), max_size=OFFLOAD_PAGES + 1, unique=True)
            if resident
            else st.just([])
        )
        pages += data.draw(st.just([]) | st.lists(st.integers(-1, NUM_PAGES + OFFLOAD_PAGES), max_size=1))
        given: Any = np.array(pages, np.int64) if as_array else pages
        if not (set(pages) <= set(resident) and len(set(pages)) == len(pages)):
            self.refused("pages: got", lambda: self.tree.offload(given))
            return
        if len(pages) + len(self.held_offloaded()) > OFFLOAD_PAGES:
            before = self.snapshot()
            with pytest.raises(OutOfPagesError, match=f"of {OFFLOAD_PAGES} places are free"):
                self.tree.offload(given)
            assert self.snapshot() == before
            return
        free = self.tree.free_pages
        moves = self.tree.offload(given)
        assert moves[:, 0].tolist() == pages
        assert self.tree.free_pages - free == len(pages)
        self.moved(moves)
        self.offloaded |= {names[page] for page in pages}

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def reload(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.model)), min_size=1, max_size=3, unique=True))
        wanted = {page for id_ in ids for page in self.model[id_].pages} & self.offloaded
        if len(wanted) > self.tree.free_pages:
            before = self.snapshot()
            with pytest.raises(OutOfPagesError, match=f"of {NUM_PAGES} free"):
                self.tree.reload(ids)
            assert self.snapshot() == before
            return
        moves = self.tree.reload(ids)
        assert len(moves) == len(wanted)
        self.moved(moves)
        self.offloaded -= wanted

    def moved(self, moves: np.ndarray) -> None:
        kv = self.kv.copy()
        self.kv[moves[:, 0]] = -2  # what is left behind is poisoned
        self.kv[moves[:, 1]] = kv[moves[:, 0]]

    def names(self) -> dict[int, int]:
        """By the tree's number of each page that is held, its name."""
        tables, _ = self.tree.block_tables(list(self.model))
        return {
            page: name
            for table, holder in zip(tables.tolist(), self.model.values(), strict=True)
            for page, name in zip(table, holder.pages, strict=False)
            if name is not None
        }

    def held_offloaded(self) -> set[int]:
        return self.offloaded & self.model.visible_slots().keys()

    @precondition(lambda self: self.branches())
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        branch = self.pick(data, self.branches())
        length = data.draw(st.integers(0, len(self.model[branch].tokens)))
        if self.model[branch].ends_in_a_hole(length):
            self.refused(f"length: got {length}, but positions", lambda: self.tree.truncate(branch, length))
            return
        self.tree.truncate(branch, length)
        self.model[branch] = self.model[branch].prefix(length)

    @precondition(lambda self: self.branches())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        branch = self.pick(data, self.branches())
        self.tree.release(branch)
        del self.model[branch]
        with pytest.raises(ValueError, match="does not hold"):
            self.tree.length(branch)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        source, at, length = self.pick_prefix(data)
        if self.model[source].ends_in_a_hole(length):
            self.refused(f"at: got {length}, but positions", lambda: self.tree.pin(source, at))
            return
        self.model[self.tree.pin(source, at)] = self.model[source].prefix(length, pinned=True)

    @precondition(lambda self: len(self.branches()) < len(self.model))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        pin = self.pick(data, [id_ for id_, holder in self.model.items() if holder.pinned])
        self.tree.unpin(pin)
        del self.model[pin]

    @precondition(lambda self: any(len(self.model[b].pages) > 1 for b in self.branches()))
    @rule(data=st.data(), as_arrays=st.booleans())
    def evict(self, data: st.DataObject, as_arrays: bool) -> None:
        longest = max(self.branches(), key=lambda b: len(self.model[b].pages))
        others = data.draw(st.lists(st.sampled_from(self.branches()), max_size=3, unique=True))
        branches = [longest, *(b for b in others if b != longest)]
        last = len(self.model[longest].pages) - 1
        columns = data.draw(
            st.lists(st.integers(0, last - 1), max_size=2, unique=True)
            | st.lists(st.integers(-1, last + 1), max_size=3, unique=True)
        )
        given = (np.array(branches), np.array(columns, np.int16)) if as_arrays else (branches, columns)
        before = len(self.model.visible_slots().keys() - self.offloaded)
        if not self.model.evict(branches, columns):
            self.refused("columns: got", lambda: self.tree.evict(*given))
            return
        left = len(self.model.visible_slots().keys() - self.offloaded)
        assert self.tree.evict(*given) == before - left

    @precondition(lambda self: self.branches())
    @rule(data=st.data(), as_array=st.booleans())
    def compact(self, data: st.DataObject, as_array: bool) -> None:
        branch = max(self.branches(), key=lambda b: len(self.model.own_columns(b)))
        holder, own = self.model[branch], self.model.own_columns(branch)
        columns = data.draw(
            st.lists(st.sampled_from(own), min_size=min(2, len(own)), unique=True).map(sorted)
            if own
            else st.just([])
        )
        columns = data.draw(st.just(columns) | st.lists(st.integers(-1, len(holder.pages)), max_size=3))
        keep = data.draw(st.integers(1, max(1, len(columns) - 1)) | st.integers(-1, len(columns) + 1))
        given: Any = np.array(columns, np.int64) if as_array else columns
        rising = columns == sorted(set(columns))
        inside = not {holder.pages[column] for column in set(columns) & set(own)} & self.offloaded
        if not (rising and inside and set(columns) <= set(own) and 1 <= keep < len(columns)):
            self.refused("columns: got|keep: got", lambda: self.tree.compact(branch, given, keep))
            return
        free = self.tree.free_pages
        self.tree.compact(branch, given, keep)
        assert self.tree.free_pages - free == len(columns) - keep
        holder.mixed |= {holder.pages[column] for column in columns[-keep:]}
        for column in columns[:-keep]:
            holder.pages[column] = None

    @rule(data=st.data(), tail=st.lists(st.integers(0, 2), max_size=6))
    def match(self, data: st.DataObject, tail: list[int]) -> None:
        known = self.model[self.pick(data, list(self.model))].tokens if self.model else []
        tokens = known[: data.draw(st.integers(0, len(known)))] + tail
        assert self.tree.match(tokens) == self.model.longest_match(tokens)

    def refused(self, message: str, call: Callable[[], Any]) -> None:
        before = self.snapshot()
        with pytest.raises(ValueError, match=message):
            call()
        assert self.snapshot() == before

    def snapshot(self) -> tuple[str, list[list[int]], list[list[int]]]:
        holders = list(self.model)
        tables, _ = self.tree.block_tables(holders)
        tokens = [self.tree.tokens(id_).tolist() for id_ in holders]
        return repr(self.tree.stats()), tokens, tables.tolist()

    @invariant()
    def every_branch_reads_its_own_tokens(self) -> None:
        tables, lengths = self.tree.block_tables(list(self.model))
        for (id_, holder), table, length in zip(self.model.items(), tables, lengths, strict=True):
            assert length == self.tree.length(id_) == len(holder.tokens)
            assert self.tree.tokens(id_).tolist() == holder.tokens_held()
            assert (table[len(holder.pages) :] == -1).all()
            held = [sum(page in other.pages for other in self.model.values()) for page in holder.pages]
            shared = [0 if page is None else n for page, n in zip(holder.pages, held, strict=True)]
            assert self.tree.page_holders(id_).tolist() == shared
            for position, token in enumerate(holder.tokens):
                if holder.lacks_its_tokens(position // PAGE_SIZE):
                    evicted = holder.pages[position // PAGE_SIZE] is None
                    assert (table[position // PAGE_SIZE] == -1) == evicted
                    continue
                assert (table[position // PAGE_SIZE] >= NUM_PAGES) == (
                    holder.pages[position // PAGE_SIZE] in self.offloaded
                )
                read = self.kv[table[position // PAGE_SIZE], position % PAGE_SIZE]
                assert read.tolist() == [token, position]

    @invariant()
    def counts_agree(self) -> None:
        stats, visible = self.tree.stats(), self.model.visible_slots()
        self.peak = max(self.peak, len(visible.keys() - self.offloaded))
        assert stats.branches == len(self.branches())
        assert stats.pins == len(self.model) - stats.branches
        assert stats.logical_tokens == sum(len(self.model[b].tokens) for b in self.branches())
        holes = sum(self.model[b].pages.count(None) for b in self.branches())
        assert stats.evicted_tokens == holes * PAGE_SIZE
        assert stats.unique_tokens == sum(visible.values())
        self.offloaded &= visible.keys()
        assert stats.offloaded_pages == len(self.offloaded) == self.tree.offloaded_pages
        assert stats.resident_pages == len(visible) - len(self.offloaded) == NUM_PAGES - self.tree.free_pages
        assert stats.peak_pages == self.peak
        slots = len(visible) * PAGE_SIZE
        assert stats.fragmentation == pytest.approx(1 - stats.unique_tokens / slots if slots else 0)

    def teardown(self) -> None:
        for id_, holder in self.model.items():
            (self.tree.unpin if holder.pinned else self.tree.release)(id_)
        assert (self.tree.free_pages, self.tree.offloaded_pages) == (NUM_PAGES, 0)
        assert self.tree.stats().unique_tokens == 0


TestTreeMachine = TreeMachine.TestCase
TestTreeMachine.settings = settings(max_examples=100, stateful_step_count=40)
