"""The bench of offloading: Belady's rule by hand, and the page as recorded."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from benches.kv_offload import PAGE, RECORD, Tick, belady, filled


def tick(read: str, held: str) -> Tick:
    return Tick(frozenset(map(ord, read)), frozenset(map(ord, held)))


def test_belady_by_hand() -> None:
    # Two places. a and b; then c: of a and b the one goes that is read later, which is a; b is read; then a.
    ticks = [tick("ab", "ab"), tick("c", "abc"), tick("b", "abc"), tick("a", "abc")]
    assert belady(ticks, 3) == 0
    assert belady(ticks, 2) == 3  # a out; a in, and c, which is held but never read again, out
    freed = [*ticks[:3], tick("a", "a")]
    assert belady(freed, 2) == 2  # what nobody holds is gone without a move


def least(ticks: list[Tick], capacity: int) -> int:
    """The fewest moves of any choice, by trying all."""
    states = {(frozenset[int](), frozenset[int]()): 0}
    for now in ticks:
        after: dict[tuple[frozenset[int], frozenset[int]], int] = {}
        for (inside, outside), moved in states.items():
            inside, outside = inside & now.held, outside & now.held
            cost = moved + len(now.read & outside)
            inside, outside = inside | now.read, outside - now.read
            over = max(0, len(inside) - capacity)
            for out in itertools.combinations(sorted(inside - now.read), over):
                state = (inside - set(out), outside | set(out))
                after[state] = min(after.get(state, 10**9), cost + over)
        states = after
    return min(states.values())


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_moves_less_while_all_pages_live(seed: int) -> None:
    """By one at most: a page that is never read again is moved out like any other, though it could stay."""
    rng = random.Random(seed)
    held, ticks = "", []
    for _ in range(8):
        held += chr(97 + len(held)) if len(held) < 6 and rng.random() < 0.7 else ""
        held = held or "a"
        ticks.append(tick("".join(rng.sample(held, min(len(held), rng.randint(1, 2)))), held))
    seen: set[int] = set()
    ticks = [Tick(now.read, frozenset(seen := seen | now.read)) for now in ticks]
    assert least(ticks, 3) <= belady(ticks, 3) <= least(ticks, 3) + 1


def test_the_page_is_that_of_the_record() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, json.loads(RECORD.read_text(encoding="utf-8"))) == page
