"""What a search may hold and spend beside what it samples, and what a client is told when it goes wrong."""

import logging

import pytest
from tts_decode import Budget, SamplingParams
from tts_decode.search import STRATEGIES, Strategy
from tts_decode.search.model_calls import SearchStoppedError
from tts_decode.serve.bounded_run import BoundedRun
from tts_decode.serve.config import Limits

PROMPT = "The quick brown"
BODY = {"prompt": PROMPT, "seed": 3, "max_tokens": 8}


def in_run(decoder, body, most=512, tokens=10_000):
    """What a coroutine over a run returns, and the budget's tokens that are used then."""

    async def run():
        budget = Budget(max_tokens=tokens)
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=4), budget)
        search = BoundedRun(decoder, root, most)
        try:
            return await body(search, root), budget.tokens_used
        finally:
            for branch in list(search.held):
                search.release(branch)
            root.release()

    return decoder.run(run())


def test_branches_are_counted(alone):
    async def body(run, root):
        run.fork(root, 3)
        with pytest.raises(SearchStoppedError):
            run.fork(root, 2)
        await run.prompt("Another")
        with pytest.raises(SearchStoppedError):
            await run.prompt("One too many")
        return len(run.held)

    assert in_run(alone, body, most=4) == (4, len("Another"))


def test_further_prompts_and_forced_texts_are_paid_for(alone):
    async def body(run, root):
        (branch,) = run.fork(root, 1)
        await run.extend(branch, "12345")
        await run.prompt("zzz")

    assert in_run(alone, body)[1] == 5 + 3


def test_no_prompt_is_made_when_the_budget_is_used_up(alone):
    async def body(run, root):
        (branch,) = run.fork(root, 1)
        await run.extend(branch, "12345")
        before = alone.stats().forward_tokens
        with pytest.raises(SearchStoppedError):
            await run.prompt("zzz")
        return alone.stats().forward_tokens - before

    assert in_run(alone, body, tokens=5)[0] == 0


def test_a_search_that_is_too_wide_ends_with_what_it_has(serve):
    served = serve(limits=Limits(search_branches=6, idle_seconds=5.0))
    options = {"strategy": "sample_scrutinize", "n": 4, "num_verifications": 8}
    answer = served.complete(**BODY, tts=options)
    assert answer["tts"]["stopped"] == "the search holds 6 branches, as many as it may"


def test_an_option_that_the_strategy_refuses_is_named(served):
    answer = served.post("/v1/completions", {**BODY, "tts": {"strategy": "beam_search", "n": 0}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tts.n")


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "ets", "n": 4, "softmax_temperature": -1},
        {"strategy": "rebase", "n": 4, "softmax_temperature": 0},
        {"strategy": "mcts", "pb_c_base": 0},
        {"strategy": "lm_beam_search", "length_penalty": 1e308},
    ],
    ids=lambda options: options["strategy"],
)
def test_an_option_that_is_refused_after_work_is_the_client_s_fault(served, caplog, options):
    body = {**BODY, "max_tokens": 24, "tts": {"max_step_tokens": 2, **options}}
    answer = served.post("/v1/completions", body)
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert error["param"] in ("tts", f"tts.{list(options)[-1]}")
    assert "got" in error["message"]
    assert f"options of a search by {options['strategy']} were refused after it began" in caplog.text
    assert "Traceback" in caplog.text  # it may be a fault of the server's


def test_an_overflow_is_told_as_the_options_and_logged_in_full(served, monkeypatch, caplog):
    async def failing(self, run, **options):
        raise ZeroDivisionError("inside of the strategy")

    monkeypatch.setattr(Strategy, "__call__", failing)
    tts = {"strategy": "ets", "n": 2, "softmax_temperature": 0.5}
    answer = served.post("/v1/completions", {**BODY, "tts": tts})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tts")
    assert "inside of the strategy" not in answer.text
    assert "ZeroDivisionError: inside of the strategy" in caplog.text
    assert "in failing" in caplog.text


@pytest.mark.parametrize("error", [ValueError("k: got /secret/path, expected x"), TypeError("/secret/path")])
def test_a_later_error_is_logged_and_not_told(served, monkeypatch, caplog, error):
    call = Strategy.__call__

    async def failing(self, root, *args, **options):
        await call(self, root, *args, **options)
        raise error

    monkeypatch.setattr(Strategy, "__call__", failing)
    with caplog.at_level(logging.ERROR):
        answer = served.post("/v1/completions", {**BODY, "tts": {"strategy": "best_of_n", "n": 2}})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "/secret/path" in caplog.text


def test_a_scorer_that_fails_is_told_in_fixed_words(serve, caplog):
    def broken(branches):
        raise OSError("/secret/path")

    served = serve(scorers={"broken": broken})
    answer = served.complete(**BODY, tts={"strategy": "best_of_n", "n": 2, "scorer": "broken"})
    assert answer["tts"]["stopped"] == "the scorer failed"
    assert "secret" not in served.http.get(answer["tts"]["tree"]).text
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    "values", [[float("nan")] * 2, [0.5] * 3, ["/secret"] * 2], ids=["nan", "many", "text"]
)
def test_a_scorer_without_scores_is_named_as_the_client_named_it(serve, caplog, values):
    async def inner_name(branches):
        return values

    served = serve(scorers={"mine": inner_name})
    tts = {"strategy": "best_of_n", "n": 2, "scorer": "mine"}
    answer = served.post("/v1/completions", {**BODY, "tts": tts})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (500, "tts.scorer", "internal_error")
    assert "'mine'" in error["message"]
    assert "inner_name" not in answer.text
    assert "secret" not in answer.text
    assert "scorer inner_name: got" in caplog.text


@pytest.mark.parametrize("limits", [{"choices": 6}, {"sequences": 6}, {"client_sequences": 2}], ids=str)
@pytest.mark.parametrize("strategy", ["best_of_n", "beam_search", "adaptive_consistency"])
def test_counts_that_the_request_does_not_name_are_cut_to_the_limits(serve, limits, strategy):
    served = serve(limits=Limits(idle_seconds=5.0, **limits))
    answer = served.complete(**BODY, tts={"strategy": strategy})  # 16 or 40 by default, beside 4
    most = next(iter(limits.values()))
    assert answer["tts"]["stopped"] is None
    assert 1 <= answer["tts"]["candidates"] <= most


def test_a_pool_that_is_full_is_told_in_fixed_words(served, monkeypatch):
    from tts_kernels import OutOfPagesError

    strategy = STRATEGIES["best_of_n"]

    async def full(run, **options):
        raise OutOfPagesError("branch 7 needs 3 more KV pages (9999 bytes)")

    monkeypatch.setattr(strategy, "body", full)
    answer = served.complete(**BODY, tts={"strategy": "best_of_n"})
    assert answer["tts"]["stopped"] == "no memory was left for the KV of the search"
