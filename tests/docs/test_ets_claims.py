"""`benches.ets_claims`: its scores, its count of KV, its admission to a budget, and files that it goes on
with."""

from __future__ import annotations

import base64
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from tts_decode.records.record_file import read_records

from benches.ets_claims import record as recording
from benches.ets_claims.admission import Batch, Load, loads, serve
from benches.ets_claims.fitting import fit
from benches.ets_claims.growing import Policy, Stage, account, distinct_tokens, grow
from benches.ets_claims.ledger import Ledger
from benches.ets_claims.paging import Moment, mean_pages, peak_pages, replay
from benches.ets_claims.price import largest, swept
from benches.ets_claims.problems import at_its_end, problems, stated
from benches.ets_claims.record import ROLLOUTS, SCHEMA, VERSION, WIDTH
from benches.ets_claims.worlds import (
    RIGHT,
    Fit,
    Nodes,
    NoisyScores,
    RecordedWorld,
    RolloutScores,
    SimulatedWorld,
)

RECORD = Path(__file__).parents[2] / "benches/results/ets_record.jsonl"
FIT = Fit(
    (1.0, 1.0),
    (0.2, 0.3),
    (3,),
    ((90, 110), (70, 80)),
    40,
    (0.9, 0.7),
    8,
    early=0.0,
    silent=0.5,
    same_wrong=0.4,
)


def area(right: list[float], wrong: list[float]) -> float:
    """AUC by ranks: (sum of the ranks of `right` - n (n + 1) / 2) / (n m), without ties."""
    ranked = sorted([(score, True) for score in right] + [(score, False) for score in wrong])
    ranks = sum(rank for rank, (_, is_right) in enumerate(ranked, start=1) if is_right)
    return (ranks - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong))


@pytest.mark.parametrize("auc", [0.75, 0.85])
@pytest.mark.parametrize("finished", [False, True])
def test_simulated_scores_have_the_stated_auc(auc: float, finished: bool) -> None:
    rng = random.Random(1)
    scores = NoisyScores(auc)
    sides = [
        [scores.score(value, bool(value) if finished else None, 0.5, rng) for _ in range(20_000)]
        for value in (1.0, 0.0)
    ]
    assert area(*sides) == pytest.approx(auc, abs=0.01)  # three standard errors are 0.007


def test_an_auc_that_no_score_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"auc: got 1\.0, expected more than 0\.5 and less than 1"):
        NoisyScores(1.0)


def test_rollout_scores_average_to_the_value() -> None:
    rng, scores = random.Random(2), RolloutScores(8)
    drawn = [scores.score(0.3, None, 0.5, rng) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.3, abs=0.005)
    assert {round(8 * score, 9) for score in drawn} <= set(range(9))
    assert scores.score(1.0, True, 0.625, rng) == 0.625


def test_simulated_values_stay_their_parents_on_average_and_spread_as_fitted() -> None:
    world = SimulatedWorld(FIT, RolloutScores(), seed=3)
    above = world.values[0]
    values = [world.values[child] for child in world.children(0, 20_000)]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    assert mean == pytest.approx(above, abs=0.01)
    assert variance == pytest.approx(FIT.spreads[0] * above * (1 - above), rel=0.1)


def test_branches_that_end_early_leave_the_mean_value_as_it_is() -> None:
    world = SimulatedWorld(replace(FIT, early=0.2), RolloutScores(), seed=11)
    above = world.values[0]
    children = world.children(0, 20_000)
    ended = [child for child in children if world.nodes.finished[child]]
    assert above < 0.8
    assert len(ended) / len(children) == pytest.approx(0.2, abs=0.01)
    assert sum(world.values[child] for child in children) / len(children) == pytest.approx(above, abs=0.015)
    assert sum(world.nodes.answers[child] is None for child in ended) / len(ended) == pytest.approx(
        0.5, abs=0.03
    )
    assert RIGHT not in {world.nodes.answers[child] for child in ended}


def test_searches_of_a_simulated_problem_meet_the_same_steps() -> None:
    one, other = (SimulatedWorld(FIT, NoisyScores(0.8), seed=4) for _ in range(2))
    few, many = one.children(0, 2), other.children(0, 5)
    assert [one.nodes.scores[node] for node in few] == [other.nodes.scores[node] for node in many[:2]]
    assert one.embeddings(few).tolist() == other.embeddings(many[:2]).tolist()
    assert len({other.nodes.scores[node] for node in many}) == 5


def recorded(problem: int, fit: Fit) -> dict[str, Any]:
    """A record of REBASE on a simulated problem, as the command writes them; node ids rise with depth."""
    world = SimulatedWorld(fit, RolloutScores(ROLLOUTS), seed=problem)
    stages = grow(world, 16, Policy())
    nodes: list[list[Any]] = []
    for at, parent in enumerate(world.nodes.parents):
        ended = world.nodes.finished[at]
        value = -1 if ended else round(ROLLOUTS * world.nodes.scores[at])
        answer = None if world.nodes.answers[at] is None else str(world.nodes.answers[at])
        nodes.append([parent, world.nodes.tokens[at], value, answer])
    rows = np.zeros((len(nodes) - 1, 32))
    rows[:, : fit.dimensions] = world.embeddings(range(1, len(nodes)))
    rows = np.rint(127 * rows / np.abs(rows).max(axis=1, keepdims=True)).astype(np.int8)
    assert stages
    return {
        "problem": str(problem),
        "answer": "0",
        "nodes": nodes,
        "embeddings": base64.b64encode(rows.tobytes()).decode(),
        "searches": {"rebase": list(range(len(nodes)))},
        "rolled_out": 0,
        "seconds": 0.0,
    }


def test_a_fit_finds_what_the_records_were_simulated_with() -> None:
    known = Fit(
        (2.0, 3.0),
        (0.1, 0.3, 0.2),
        (4,),
        ((90, 110), (50, 60)),
        40,
        (0.9, 0.7),
        12,
        early=0.1,
        silent=0.4,
        same_wrong=0.3,
    )
    found = fit([recorded(problem, known) for problem in range(400)], ROLLOUTS)
    a, b = found.problem_values
    assert a / (a + b) == pytest.approx(0.4, abs=0.04)
    assert found.spreads == pytest.approx(known.spreads, abs=0.04)
    assert set(found.depths) == {4}
    assert found.prompt == 40
    assert [set(tokens) for tokens in found.tokens] == [{90, 110}, *[{50, 60}] * 3]
    assert found.early == pytest.approx(0.1, abs=0.01)
    assert found.silent == pytest.approx(0.4, abs=0.02)
    assert found.same_wrong == pytest.approx(0.3, abs=0.06)
    assert found.alike == pytest.approx(known.alike, abs=0.06)


def test_the_replay_of_a_recorded_search_is_that_search() -> None:
    record = recorded(5, FIT)
    world = RecordedWorld(record, ROLLOUTS)
    grow(world, 16, Policy())
    assert world.borrowed == 0
    assert sorted(world.source) == record["searches"]["rebase"]


def tree() -> tuple[Nodes, list[Stage]]:
    """A prompt of 20 tokens; steps of 10 and 6 below it; the first goes on with two steps, of 3 and 20
    tokens."""
    nodes = Nodes()
    nodes.add(-1, 20, 0.5, False, None)
    first, second = nodes.add(0, 10, 0.9, False, None), nodes.add(0, 6, 0.1, False, None)
    third, fourth = nodes.add(first, 3, 0.9, False, None), nodes.add(first, 20, 0.8, True, 0)
    fifth = nodes.add(third, 1, 0.7, True, 4)
    stages = [
        Stage([first, second], [first, second], [2, 0], 0),
        Stage([third, fourth], [third], [1], 0),
        Stage([fifth], [], [], 0),
    ]
    return nodes, stages


def test_kv_is_the_sum_of_distinct_tokens_without_the_prompt() -> None:
    nodes, stages = tree()
    assert distinct_tokens(nodes, [1, 2]) == 16
    assert distinct_tokens(nodes, [3, 4]) == 33  # 10 + 3 + 20: the step above both counts once
    found = account(nodes, stages)
    assert found.kv_sum == 16 + 13
    assert (found.live, found.kept, found.selections) == (3, 2, 2)
    assert found.voted  # 0.8 for the right answer, 0.7 for another
    assert found.best
    assert found.found


def test_pages_of_a_tree_counted_by_hand() -> None:
    nodes, stages = tree()
    moments = replay(nodes, stages)
    # The root holds its pages all the time: 20 tokens, one full page and one of 4 tokens.
    # Step 1, pages of 16: after 8 ticks the branches have 28 and 26 tokens, each with its copy of the second
    # page; two ticks later the first has 30. Step 2: paths of 33 and 50 tokens. Two ticks of 8 and one of 4;
    # the branch of 3 tokens stops after the first.
    assert [moment.ticks for moment in moments] == [8, 2, 8, 8, 4, 1]
    assert [moment.rows for moment in moments] == [2, 1, 2, 1, 1, 1]
    # 1 shared + the root's second + two copies; then at 38 and 33 tokens: second pages and a third for each.
    assert [moment.pages for moment in moments] == [4, 4, 6, 6, 7, 4]
    assert [moment.pairs for moment in moments] == [54, 30, 71, 46, 50, 34]
    assert peak_pages(moments) == 7
    assert mean_pages(moments) == pytest.approx((4 * 8 + 4 * 2 + 6 * 8 + 6 * 8 + 7 * 4 + 4) / 31)


def test_a_search_in_equal_chunks_of_its_time() -> None:
    moments = [Moment(8, 2, 4, 0, 54, 0), Moment(2, 1, 5, 0, 30, 0), Moment(8, 2, 6, 0, 71, 1)]
    assert loads(moments) == [Load(2, 4, 54), Load(2, 6, 71)]  # at 8 and 16 tokens


def test_admission_by_hand() -> None:
    searches = [[Load(1, 2, 0), Load(1, 4, 0)]] * 3  # peaks of 4 pages

    def second(batch: Batch) -> float:
        return 1 / 8  # a chunk of 8 tokens takes a second, whatever the batch

    assert serve(searches, 12, second).seconds == 2  # all at once
    two = serve(searches, 8, second)
    assert (two.seconds, two.restarts) == (4, 0)  # two, then one
    assert two.running == pytest.approx((2 + 2 + 1 + 1) / 4)
    assert serve(searches, 4, second).seconds == 6
    assert two.per_minute == 45
    with pytest.raises(ValueError, match="budget: got 3 pages, expected at least 4"):
        serve(searches, 3, second)


def test_a_search_waits_for_pages_and_the_last_one_starts_anew_where_all_wait() -> None:
    batches: list[Batch] = []

    def second(batch: Batch) -> float:
        batches.append(batch)
        return 1 / 8

    # Mean peak 3: both are admitted to 6 pages. The first takes 5 of them in its second chunk, so the other
    # waits.
    long, short = [Load(1, 3, 0), Load(1, 5, 0), Load(1, 5, 0)], [Load(1, 1, 0), Load(1, 1, 0)]
    found = serve([long, short], 6, second)
    assert [batch.pages for batch in batches] == [4, 6, 5]
    assert (found.seconds, found.restarts) == (3, 0)
    batches.clear()
    # Mean peak 2: two are admitted to 4 pages, hold 2 each and want 3. The second gives its own back, begins
    # anew when the first has ended, and the third runs beside it.
    twins = [[Load(1, 2, 0), Load(1, 3, 0)], [Load(1, 2, 0), Load(1, 3, 0)], [Load(1, 0, 0)]]
    found = serve(twins, 4, second)
    assert [batch.pages for batch in batches] == [4, 3, 2, 3]
    assert [batch.rows for batch in batches] == [2, 1, 2, 1]
    assert found.restarts == 1


def test_the_largest_price_stops_at_the_first_that_loses_too_much() -> None:
    right, sums = [1] * 400, [200] * 400
    blocks = [
        {
            "0.0": {"voted": right, "kv_sum": sums},
            "1.0": {"voted": right, "kv_sum": [100] * 400},
            "2.0": {"voted": [0] * 20 + [1] * 380, "kv_sum": [50] * 400},
            "3.0": {"voted": right, "kv_sum": [25] * 400},
        }
    ]
    rows = swept(blocks)
    assert [row["saved"]["value"] for row in rows] == pytest.approx([1, 2, 4, 8])
    assert rows[2]["change"]["value"] == pytest.approx(-0.05)
    assert largest(rows) == 1.0


def test_a_ledger_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        assert ledger.result("kv", {"width": 16}, lambda: {"pages": 3}) == {"pages": 3}
        with pytest.raises(RuntimeError, match="interrupted"):
            ledger.result("kv", {"width": 64}, raising)
    with path.open("ab") as file:
        file.write(b'{"part": "kv", "key"')  # a line that a crash cut off
    with Ledger(path) as ledger:
        assert ledger.result("kv", {"width": 16}, raising) == {"pages": 3}
        assert ledger.result("kv", {"width": 64}, lambda: {"pages": 5}) == {"pages": 5}


def raising(*arguments: object, **named: object) -> Any:
    raise RuntimeError("interrupted")


def test_recording_goes_on_with_the_problems_that_the_file_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.jsonl"
    file = recording.open_record(path)
    for problem in problems(2):
        file.write({"problem": problem.name})
    file.close()
    monkeypatch.setattr(recording, "load_model", raising)
    recording.record(path, 2)  # nothing is left to do, so no model is loaded
    with pytest.raises(RuntimeError, match="interrupted"):
        recording.record(path, 3)
    monkeypatch.setattr(recording, "WIDTH", 32)
    with pytest.raises(typer.BadParameter, match="is of other settings"):
        recording.open_record(path)


def test_problems_state_their_answers() -> None:
    found = problems(20)
    assert len({problem.prompt for problem in found}) == 20
    for problem in found:
        first, _, added = problem.name.split(" ", 2)
        assert int(problem.answer) == int(first) + 5 * int(added.split(" x ")[1])
    assert stated("So the total after step 5 is 27, and what we add") == "27"
    assert stated("So the total after step 4 is 27.") is None
    assert not at_its_end("Step 1 of 5. So.\n\nSte")
    assert at_its_end("Step 1 of 5. So.\n\nNow")


def test_the_recorded_search_of_rebase_is_what_its_replay_grows() -> None:
    """REBASE of the package chose on the model what the bench's own loop chooses on the record."""
    _, records, _ = read_records(RECORD, SCHEMA, VERSION, error=ValueError)
    assert records
    for record in records:
        world = RecordedWorld(record, ROLLOUTS)
        stages = grow(world, WIDTH, Policy())
        assert world.borrowed == 0
        assert sorted(world.source) == sorted(record["searches"]["rebase"])
        assert len(stages) > 1
