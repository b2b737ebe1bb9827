"""Which nodes may get an actor: those that fail are tried less and less, then not at all."""

from __future__ import annotations

from tts_decode.cluster.trials import Trials


def test_a_node_is_tried_later_and_later_then_left_out() -> None:
    trials = Trials()
    assert trials.may_start("a", 0)
    assert trials.failed("a", 10)
    assert [trials.may_start("a", now) for now in (10, 10.9, 11)] == [False, False, True]
    assert not trials.failed("a", 20), "only the first and the last are told"
    assert [trials.may_start("a", now) for now in (21.9, 22)] == [False, True]
    assert trials.failed("a", 30)
    assert trials.left_out == {"a"}
    assert not trials.may_start("a", 1e9)
    assert trials.may_start("b", 30)
    assert trials.failed("a", 31), "another of its actors, which was still starting"


def test_actors_of_a_node_that_fail_together_are_one_failure() -> None:
    trials = Trials()
    assert [trials.failed("a", 10) for _ in range(8)] == [True] * 8
    assert not trials.left_out
    assert trials.may_start("a", 11)


def test_an_actor_that_opens_clears_its_node() -> None:
    trials = Trials()
    for now in (10, 20, 30, 40, 50):
        trials.failed("a", now)
        trials.opened("a")
        assert trials.may_start("a", now)
    assert not trials.left_out


def test_a_node_whose_actor_differs_is_left_out_at_once() -> None:
    trials = Trials()
    trials.leave_out("a")
    assert not trials.may_start("a", 0)
