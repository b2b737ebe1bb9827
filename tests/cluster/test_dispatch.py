"""Who gets which search: random sequences of submissions, ends and deaths, and the choices in particular."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tts_decode.cluster.dispatch import Dispatch
from tts_decode.cluster.prefixes import BLOCK, blocks_of

ATTEMPTS = 4
PROMPTS = ["", "a" * BLOCK, "a" * BLOCK + "b", "a" * BLOCK + "c" * 3 * BLOCK, "d" * 700, "e"]


class Pool(RuleBasedStateMachine):
    """Plays the actors. `running` and `deaths` are kept here, by what was handed out and who died."""

    @initialize(in_flight=st.integers(1, 3), remember=st.integers(0, 2))
    def begin(self, in_flight: int, remember: int) -> None:
        self.dispatch: Dispatch[str, int] = Dispatch(in_flight, ATTEMPTS, remember)
        self.in_flight = in_flight
        self.running: dict[str, set[int]] = {}
        self.deaths: Counter[int] = Counter()
        self.submitted = self.actors = 0
        self.outcomes: Counter[int] = Counter()
        self.withdrawn: set[int] = set()

    def hand_out(self) -> None:
        for actor, key in self.dispatch.assignments():
            assert actor in self.running
            assert all(key not in keys for keys in self.running.values()), "it runs already"
            assert not self.outcomes[key]
            assert key not in self.withdrawn
            if self.deaths[key] >= 2:
                assert not self.running[actor], "beside others"
            assert all(self.deaths[other] < 2 for other in self.running[actor]), "beside one that kills"
            self.running[actor].add(key)
            assert len(self.running[actor]) <= self.in_flight

    @rule(prompt=st.sampled_from(PROMPTS), count=st.integers(1, 5))
    def submit(self, prompt: str, count: int) -> None:
        for _ in range(count):
            self.dispatch.submit(self.submitted, prompt)
            self.submitted += 1
        self.hand_out()

    @rule()
    def join(self) -> None:
        self.actors += 1
        self.running[f"actor {self.actors}"] = set()
        self.dispatch.join(f"actor {self.actors}")
        self.hand_out()

    @precondition(lambda self: any(self.running.values()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        pairs = [(actor, key) for actor, keys in self.running.items() for key in sorted(keys)]
        actor, key = data.draw(st.sampled_from(pairs))
        assert self.dispatch.runs(key) == actor
        assert self.dispatch.ended(actor, key)
        assert not self.dispatch.ended(actor, key), "a second time"
        self.running[actor].remove(key)
        self.outcomes[key] += 1
        self.hand_out()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        actor = data.draw(st.sampled_from(sorted(self.running)))
        lost = self.running.pop(actor)
        self.deaths.update(lost)
        again, given_up = self.dispatch.leave(actor)
        assert {*again, *given_up} == lost
        assert set(given_up) == {key for key in lost if self.deaths[key] >= ATTEMPTS}
        assert not any(self.dispatch.ended(actor, key) for key in lost), "of a dead actor"
        assert self.dispatch.leave(actor) == ([], [])
        self.outcomes.update(given_up)
        self.hand_out()

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, self.submitted - 1))
        runs = next((actor for actor, keys in self.running.items() if key in keys), None)
        assert self.dispatch.withdraw(key) == runs
        if runs is None and not self.outcomes[key]:
            self.withdrawn.add(key)
        self.hand_out()

    @invariant()
    def nothing_is_lost(self) -> None:
        running = set().union(*self.running.values())
        known = len(running) + len(self.outcomes) + len(self.withdrawn)
        assert self.dispatch.running == len(running)
        assert self.dispatch.waiting == self.submitted - known
        assert set(self.outcomes.values()) <= {1}

    @invariant()
    def nobody_is_idle_without_need(self) -> None:
        """An actor with room gets a search, unless all that wait are suspects, or it is kept for one."""
        kept = any(self.deaths[key] >= 2 for key in range(self.submitted))
        if self.dispatch.waiting and not kept:
            assert all(len(keys) == self.in_flight for keys in self.running.values())

    def teardown(self) -> None:
        """Actors that live end all that is left."""
        if not hasattr(self, "dispatch"):
            return
        self.join()
        while any(self.running.values()):
            actor = next(actor for actor, keys in self.running.items() if keys)
            key = self.running[actor].pop()
            assert self.dispatch.ended(actor, key)
            self.outcomes[key] += 1
            self.hand_out()
        assert self.dispatch.waiting == 0
        assert {*self.outcomes, *self.withdrawn} == set(range(self.submitted))


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_beginnings_are_told_apart_by_whole_blocks_and_the_rest() -> None:
    long, longer = blocks_of("x" * BLOCK + "y"), blocks_of("x" * BLOCK + "yz")
    assert (len(long), long[0] == longer[0], long[1] == longer[1]) == (2, True, False)
    assert blocks_of("") == ()
    assert len(blocks_of("q" * 10**6)) == 64


def handed_out(dispatch: Dispatch[str, str]) -> list[tuple[str, str]]:
    return list(dispatch.assignments())


def test_a_prompt_goes_where_its_beginning_is() -> None:
    shots = "worked example " * 40  # 600 characters
    dispatch: Dispatch[str, str] = Dispatch(2, ATTEMPTS)
    for actor in ("A", "B"):
        dispatch.join(actor)
    dispatch.submit("first", shots + "2 + 2?")
    dispatch.submit("other", "something else")
    assert handed_out(dispatch) == [("A", "first"), ("B", "other")]
    dispatch.submit("plain", "a third")
    dispatch.submit("again", shots + "3 + 3?")
    assert handed_out(dispatch) == [("A", "again"), ("B", "plain")]
    dispatch.submit("late", shots + "4 + 4?")
    assert dispatch.ended("B", "plain")
    assert handed_out(dispatch) == [("B", "late")], "an actor with room does not wait for another one"


def test_searches_without_a_common_beginning_are_spread() -> None:
    dispatch: Dispatch[str, str] = Dispatch(4, ATTEMPTS)
    for actor in ("A", "B"):
        dispatch.join(actor)
    for i in range(4):
        dispatch.submit(str(i), f"{i} is another prompt")
    assert [actor for actor, _ in handed_out(dispatch)] == ["A", "B", "A", "B"]


def test_a_search_that_ended_is_remembered_for_a_while() -> None:
    dispatch: Dispatch[str, str] = Dispatch(1, ATTEMPTS, remember=1)
    for actor in ("A", "B"):
        dispatch.join(actor)
    for key in ("x", "y"):
        dispatch.submit(key, key * 300)
    assert handed_out(dispatch) == [("A", "x"), ("B", "y")]
    for actor, key in (("A", "x"), ("B", "y")):
        dispatch.ended(actor, key)
    for key in ("y", "x"):
        dispatch.submit(f"{key} again", key * 300)
    assert handed_out(dispatch) == [("B", "y again"), ("A", "x again")]


def test_what_died_comes_first_again_and_alone_after_two_deaths() -> None:
    dispatch: Dispatch[str, str] = Dispatch(2, ATTEMPTS)
    for key in ("killer", "innocent", "later", "last"):
        dispatch.submit(key, key)
    dispatch.join("A")
    assert handed_out(dispatch) == [("A", "killer"), ("A", "innocent")]
    assert dispatch.leave("A") == (["killer", "innocent"], [])
    dispatch.join("B")
    assert handed_out(dispatch) == [("B", "killer"), ("B", "innocent")]
    assert dispatch.leave("B") == (["killer", "innocent"], [])
    dispatch.join("C")
    assert handed_out(dispatch) == [("C", "killer")], "alone"
    assert dispatch.leave("C") == (["killer"], [])
    dispatch.join("D")
    assert handed_out(dispatch) == [("D", "killer")]
    assert dispatch.leave("D") == ([], ["killer"])
    dispatch.join("E")
    assert handed_out(dispatch) == [("E", "innocent")]
    dispatch.ended("E", "innocent")
    assert handed_out(dispatch) == [("E", "later"), ("E", "last")]
