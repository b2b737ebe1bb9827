"""AgentTTS: stages against a plain run, the search against all plans, and what an agent may say."""

import asyncio
import itertools
from dataclasses import dataclass

import pytest
from plain_scripts import number
from scripted import counted, scorer, scripted_decoder, words
from tts_decode.search import (
    Archive,
    Choice,
    Setting,
    Stage,
    Trial,
    beam_search,
    best_of_n,
    language_agent,
    measure_plan,
    search_plans,
)
from tts_decode.search.agent_tts import neighbours, read_plans


@dataclass(frozen=True)
class Question:
    prompt: str
    right: str | None

    @property
    def verify(self):
        return None if self.right is None else lambda text: float(text == self.right)


def stage(name, prompt, *choices):
    return Stage(name, prompt, [Choice(model, Setting(best_of_n), n) for model, n in choices])


TWO = [
    stage("facts", "Find: {question}\n", ("small", 1), ("small", 3), ("large", 2)),
    stage("reply", "{question} by {facts}\n", ("small", 2), ("large", 1)),
]


def score(text):
    return number(text) % 97 / 97


def script_of(model):
    def script(prefix, k):
        return f"{model} {number(model, prefix, k) % 1000}", "eos"

    return script


# --- a plan


@pytest.mark.parametrize("plan", list(itertools.product(range(3), range(2))))
def test_stages_are_served_in_order_and_each_is_shown_the_answers_before_it(plan):
    decoders = {model: scripted_decoder(script_of(model)) for model in ("small", "large")}
    asks = {model: counted(script_of(model)) for model in ("small", "large")}
    prompts, tokens = ["Q one", "Q two"], [0, 0]
    answers = []
    for prompt in prompts:
        fields = {"question": prompt}
        for place, (part, index) in enumerate(zip(TWO, plan, strict=True)):
            choice = part.choices[index]
            said = [asks[choice.model](part.prompt.format(**fields))[0] for _ in range(choice.n)]
            fields[part.name] = max(said, key=score)
            tokens[place] += sum(len(words(text)) + 1 for text in said)
        answers.append(fields["reply"])
    questions = [Question(prompts[0], answers[0]), Question(prompts[1], "another")]

    async def measure():
        return await measure_plan(
            decoders, TWO, plan, questions, scorer=scorer(score), prices={"small": 1.0, "large": 8.0}
        )

    trial = asyncio.run(measure())
    means = [count / 2 for count in tokens]
    price = [{"small": 1, "large": 8}[s.choices[i].model] for s, i in zip(TWO, plan, strict=True)]
    cost = sum(p * count for p, count in zip(price, means, strict=True))
    assert trial == Trial(plan, 0.5, tuple(means), (0.0, 0.0), cost)
    assert all(decoder.stats().branches == 0 for decoder in decoders.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": (0,)}, r"plan: got \(0,\), expected for each stage an index below \[3, 2\]"),
        ({"plan": (3, 0)}, r"plan: got \(3, 0\)"),
        ({"plan": [0, 0]}, r"plan: got \[0, 0\]"),
        ({"decoders": {"small": None}}, r"decoders: got \['small'\], expected one for the model 'large'"),
        ({"questions": []}, "questions: got none, or one without a verifier"),
        ({"questions": [Question("a", None)]}, "questions: got none, or one without a verifier"),
        ({"prices": {"small": -1, "large": 1}}, "prices: got -1"),
        ({"stages": []}, "stages: got none"),
        ({"stages": [stage("a", "{b}", ("small", 1))]}, r"stages\[0\].prompt: got the field \{b\}"),
        ({"stages": [stage("a b", "", ("small", 1))]}, r"stages\[0\].name: got 'a b'"),
        ({"stages": [stage("question", "", ("small", 1))]}, r"stages\[0\].name: got 'question'"),
        ({"stages": [stage("a", "")]}, r"stages\[0\].choices: got none"),
        ({"stages": [stage("a", "", ("small", 0))]}, "n: got 0"),
        ({"stages": [Stage("a", "", [Choice("small", Setting(beam_search), 3)])]}, "beam_width: got 4"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_sampled(change, message):
    decoder = scripted_decoder(script_of("small"))
    asked = {
        "decoders": {"small": decoder, "large": decoder},
        "stages": TWO,
        "plan": (0, 1),
        "questions": [Question("a", "b")],
    } | change
    with pytest.raises(ValueError, match=message):
        asyncio.run(measure_plan(**asked))
    assert not decoder.complete.calls


# --- the search

SIZES = (1, 2, 4, 8, 16)
WIDE = [
    stage(name, "{question}", *[(model, n) for model in ("small", "large") for n in SIZES])
    for name in ("find", "think", "answer")
]


def environment(peaks):
    """Scores fall with the distance of each stage's choice from its peak; the number of a choice costs."""
    asked = []

    async def measure(plan):
        asked.append(plan)
        distance = sum(abs(index - peak) for index, peak in zip(plan, peaks, strict=True))
        return Trial(plan, 1 - distance / 100, (1.0,) * len(plan), (0.0,) * len(plan), float(sum(plan)))

    return measure, asked


@pytest.mark.parametrize("peaks", [(2, 7, 5), (0, 0, 0), (9, 9, 9), (4, 5, 0)])
def test_the_best_plan_is_found_in_a_part_of_all(peaks):
    measure, asked = environment(peaks)
    archive = asyncio.run(search_plans(WIDE, measure, max_trials=1000))
    plans = list(itertools.product(range(10), repeat=3))
    trials = [asyncio.run(environment(peaks)[0](plan)) for plan in plans]
    assert archive.best == max(trials, key=lambda trial: trial.score)
    assert [trial.plan for trial in archive.trials] == asked
    assert len(set(asked)) == len(asked) < 100 < len(plans)
    assert asked[:4] == [(0, 0, 0), (5, 0, 0), (0, 5, 0), (0, 0, 5)]  # each model in each stage, once


def test_a_limit_on_cost_keeps_dearer_plans_from_being_the_best():
    measure, _ = environment((9, 9, 9))
    archive = asyncio.run(search_plans(WIDE, measure, max_trials=40, max_cost=12.0))
    assert archive.best.cost <= 12
    assert any(trial.cost > 12 for trial in archive.trials)
    assert archive.best.score == max(t.score for t in archive.trials if t.cost <= 12)
    assert Archive(WIDE, archive.trials, 0.5).best.plan == (0, 0, 0)
    assert Archive(WIDE, archive.trials[1:], 0.5).best is None


def test_of_equal_scores_the_cheapest_is_the_best():
    trials = [Trial((i, 0), 0.5, (1, 1), (0, 0), cost) for i, cost in enumerate((5.0, 3.0, 4.0))]
    assert Archive(TWO, trials).best is trials[1]


def test_an_agent_is_a_function_and_is_shown_the_archive():
    """Repeated proposals are skipped; if nothing is new, the neighbours continue."""
    measure, asked = environment((1, 1))
    shown = []

    def agent(archive):
        shown.append([trial.plan for trial in archive.trials])
        return [(2, 1), (2, 1), (0, 1)]

    archive = asyncio.run(search_plans(TWO, measure, agent=agent, max_trials=4))
    assert shown == [[], [(2, 1), (0, 1)]]
    assert asked[:2] == [(2, 1), (0, 1)]
    assert asked[2:] == [(0, 0), (2, 0)]  # each model in each stage, but for (0, 1)
    assert len(archive.trials) == 4


def test_the_search_ends_where_everything_was_tried():
    one = [stage("only", "{question}", ("small", 1), ("small", 2))]
    measure, asked = environment((1,))
    assert asyncio.run(search_plans(one, measure)).best.plan == (1,)
    assert asked == [(0,), (1,)]
    assert neighbours(Archive(one, [Trial((i,), 0, (1,), (0,), 1) for i in (0, 1)])) == []


def test_an_agent_that_proposes_no_plan_is_refused():
    measure, asked = environment((1, 1))
    with pytest.raises(ValueError, match=r"plan: got \(5, 5\)"):
        asyncio.run(search_plans(TWO, measure, agent=lambda archive: [(0, 0), (5, 5)]))
    with pytest.raises(ValueError, match="max_trials: got 0"):
        asyncio.run(search_plans(TWO, measure, max_trials=0))
    with pytest.raises(ValueError, match="max_cost: got -1"):
        asyncio.run(search_plans(TWO, measure, max_cost=-1))
    assert asked == []


def test_a_language_model_proposes_plans():
    replies = ["I would try plan: 3, 2 first.\nPlan: 9, 9\nplan: 1\nplan: 1,2", "no idea"]
    said = []

    def script(prefix, k):
        said.append(prefix)
        return replies[min(len(said), 2) - 1], "eos"

    decoder = scripted_decoder(script)
    measure, asked = environment((2, 1))
    agent = language_agent(decoder)
    archive = asyncio.run(search_plans(TWO, measure, agent=agent, max_trials=3, max_cost=50))
    assert asked == [(2, 1), (0, 1), (0, 0)]
    assert "  3. large, best_of_n() at 2\n" in said[0]
    assert "nothing\n" in said[0]
    assert "3, 2: 100% solved, cost 3\n1, 2: 98% solved, cost 1\n" in said[1]
    assert "at most" in said[1]
    assert "50" in said[1]
    assert decoder.stats().branches == 0
    report = archive.report().splitlines()
    assert report[0] == "| facts | reply | score | tokens | cost |"
    assert report[2] == "| large, best_of_n() at 2 | large, best_of_n() at 1 | **100.0%** | 1 + 1 | 3 |"
    assert len(report) == 5


def test_plans_are_read_from_a_reply():
    reply = "plan: 1, 1\nPLAN:2,2 and plan: 4, 1, plan: 0, 1 plan: 1, 1, 1"
    assert read_plans(TWO, reply) == [
        (0, 0),
        (1, 1),
    ]
    assert read_plans(TWO, "plans are hard") == []
