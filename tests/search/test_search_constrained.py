"""Every strategy under a constraint: it keeps to it, or refuses it before anything is sampled."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from constrained import Pairs
from search_options import first_letters
from tiny_searches import SAMPLING, run, search_decoder
from tts_decode import ConstraintError
from tts_decode.search import STRATEGIES, Policy, Setting, get_strategy

pytestmark = pytest.mark.usefixtures("one_thread")

HELD = replace(SAMPLING, constraint=Pairs())
OURS = [name for name, made in STRATEGIES.items() if made.family != "own"]
FORCING: dict[str, dict[str, Any]] = {
    "budget_forcing": {},
    "hint_infer": {},
    "iterative_deepening": {},
    "no_thinking": {},
    "r2_retrieval": {"retrieve": first_letters},
    "revise": {},
    "selective_answer": {},
    "shifted_window": {},
    "three_d": {},
}
READING = ["atlas", "atts"]  # force what was sampled under the constraint, elsewhere


@pytest.fixture(scope="module")
def decoder():
    return search_decoder()


@pytest.mark.parametrize("name", [name for name in OURS if name not in (*FORCING, "lm_beam_search")])
def test_answers_keep_to_the_constraint(decoder, name):
    answer = run(decoder, name, sampling=HELD).answer
    assert all(char in ("abc" if i % 2 == 0 else ";") for i, char in enumerate(answer))


@pytest.mark.parametrize("name", FORCING)
def test_a_strategy_that_forces_text_refuses_a_constraint_before_it_samples(decoder, name):
    before = decoder.stats().generated_tokens
    with pytest.raises(ConstraintError, match=rf"^constraint: got one, .*: {name} forces .*best_of_n"):
        run(decoder, name, sampling=HELD, **FORCING[name])
    assert decoder.stats().generated_tokens == before


def test_so_does_one_that_a_policy_chose(decoder):
    policy = Policy((), (Setting(get_strategy("budget_forcing")),))
    with pytest.raises(ConstraintError, match="constraint: got one, expected None: budget_forcing forces"):
        run(decoder, "compute_optimal", sampling=HELD, policy=policy)


def test_no_other_strategy_forces_text():
    def forces(name: str) -> bool:
        source = Path(inspect.getsourcefile(sys.modules[STRATEGIES[name].body.__module__])).read_text()
        return "await force(" in source or "run.extend(" in source

    assert sorted(name for name in OURS if forces(name)) == sorted([*FORCING, *READING])
