"""Requests that are searches: answer and tree as in process, progress, the link, scorers of the server."""

import dataclasses
import math

import pytest
from tts_decode import Budget, SamplingParams
from tts_decode.rewards import mean_probability, verifier
from tts_decode.search import STRATEGIES, SearchResult, beam_search, render_tree
from tts_decode.serve.config import Limits

PROMPT = "The quick brown"
BODY = {"prompt": PROMPT, "seed": 3, "max_tokens": 40}
PARAMS = SamplingParams(seed=3, max_tokens=40, max_step_tokens=8, stop="\n")
OPTIONS = {"strategy": "beam_search", "n": 4, "max_step_tokens": 8}


def searched(decoder, scorer=None, **options):
    async def run():
        root = await decoder.root(PROMPT, PARAMS, Budget(max_tokens=10**5))
        try:
            return await beam_search(root, n=4, scorer=scorer or mean_probability(), **options)
        finally:
            root.release()

    return decoder.run(run())


def tree_of(served, answer):
    found = served.http.get(answer["tts"]["tree"])
    assert found.status_code == 200
    return SearchResult.from_dict(found.json())


@pytest.mark.parametrize("chat", [False, True])
def test_the_answer_is_that_of_the_search(served, alone, chat):
    if chat:
        body = {name: value for name, value in BODY.items() if name != "prompt"}
        answer = served.chat([{"role": "user", "content": PROMPT}], **body, tts=OPTIONS)
        text = answer["choices"][0]["message"]["content"]
        assert text == tree_of(served, answer).answer
        return
    answer = served.complete(**BODY, tts=OPTIONS)
    expected = searched(alone)
    (choice,) = answer["choices"]
    assert choice["text"] == expected.answer
    found = tree_of(served, answer)
    assert render_tree(found.tree) == render_tree(expected.tree)
    assert answer["usage"]["completion_tokens"] == expected.stats.generated_tokens
    told = answer["tts"]
    assert (told["strategy"], told["candidates"]) == ("beam_search", len(expected.candidates))
    assert told["score"] == pytest.approx(expected.best.score)


def test_options_reach_the_strategy(served, alone):
    answer = served.complete(**BODY, tts=OPTIONS | {"beam_width": 2, "max_steps": 2})
    assert answer["choices"][0]["text"] == searched(alone, beam_width=2, max_steps=2).answer


def test_a_scorer_of_the_server_is_named(serve, alone):
    def shortest(text):
        return -float(len(text))

    served = serve(scorers={"short": verifier(shortest)})
    answer = served.complete(**BODY, tts=OPTIONS | {"scorer": "short"})
    assert answer["choices"][0]["text"] == searched(alone, verifier(shortest)).answer


def test_a_stream_tells_progress_before_the_answer(serve, model, monkeypatch):
    monkeypatch.setattr("tts_decode.serve.searching._PROGRESS_SECONDS", 0.01)
    served = serve()
    chunks = served.chunks(
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": PROMPT}],
            "seed": 3,
            "max_tokens": 200,
            "tts": OPTIONS,
        },
    )
    *progress, last = chunks
    assert progress
    told = [chunk["tts"]["progress"] for chunk in progress]
    assert [entry["generated_tokens"] for entry in told] == sorted(e["generated_tokens"] for e in told)
    assert all(not chunk["choices"][0]["delta"].get("content") for chunk in progress)
    assert last["choices"][0]["delta"]["content"] == tree_of(served, last).answer
    assert last["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_search_keeps_to_its_budget(served):
    answer = served.complete(**BODY, tts=OPTIONS | {"budget_tokens": 30})
    assert answer["usage"]["completion_tokens"] <= 30
    assert "max_tokens" in answer["tts"]["stopped"]


def test_trees_leave_by_least_recent_use(serve):
    served = serve(limits=Limits(trees=2, idle_seconds=5.0))
    links = [served.complete(**BODY, tts=OPTIONS | {"max_steps": 1})["tts"]["tree"] for _ in range(2)]
    assert served.http.get(links[0]).status_code == 200
    links.append(served.complete(**BODY, tts=OPTIONS | {"max_steps": 1})["tts"]["tree"])
    assert [served.http.get(link).status_code for link in links] == [200, 404, 200]


def test_a_search_that_goes_on_with_a_text_shares_it(served):
    text = PROMPT + served.complete(**BODY)["choices"][0]["text"]
    answer = served.complete(text, seed=1, max_tokens=20, tts=OPTIONS)
    usage = answer["usage"]
    assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] <= 16


SERVED = sorted(name for name, strategy in STRATEGIES.items() if strategy.family != "own")


@pytest.mark.parametrize("name", SERVED)
def test_every_strategy_answers_or_is_refused_by_its_name(searching, name):
    answer = searching.post(
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "2 + 2?"}],
            "seed": 1,
            "max_tokens": 12,
            "tts": {"strategy": name, STRATEGIES[name].size: 2, "budget_tokens": 150, "max_step_tokens": 6},
        },
    )
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]["param"].partition(".")[0] == "tts", answer.text
    else:
        assert answer.json()["tts"]["strategy"] == name


@pytest.fixture(scope="module")
def searching(model):
    from serving import Served, make_chatty

    served = Served(make_chatty(model))
    yield served
    served.assert_empties()
    served.close()


def test_self_evaluation_can_be_named(served):
    body = {name: value for name, value in BODY.items() if name != "prompt"}
    answer = served.post(
        "/v1/chat/completions",
        body
        | {"messages": [{"role": "user", "content": "x"}], "tts": OPTIONS | {"scorer": "self_evaluation"}},
    )
    # Over bytes "Yes" is no token: the scorer fails, in words that are no scorer's own.
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:
        assert answer.json()["tts"]["stopped"] == "the scorer failed"


def test_votes_without_a_number_are_null(serve, monkeypatch):
    """JSON has no NaN."""
    served = serve()
    strategy = STRATEGIES["self_consistency"]
    call = type(strategy).__call__

    async def vote(self, *args, **options):
        return dataclasses.replace(await call(self, *args, **options), votes={"a": math.nan, "b": 1.0})

    monkeypatch.setattr(type(strategy), "__call__", vote)
    answer = served.complete(**BODY, tts={"strategy": "self_consistency", "n": 2})
    assert answer["tts"]["votes"] == {"a": None, "b": 1.0}
