"""Branches that end where a predicate over their text says so."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import run_scripted, scripted_decoder
from search_options import vowels
from tiny_searches import PROMPT, search_decoder
from tts_decode import Completion, SamplingParams, TextDecoder, closed_boxed, closed_json
from tts_decode.errors import UnsupportedByEngineError
from tts_decode.rewards import verifier
from tts_decode.search import Journal, SearchRun, best_of_n, knockout

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        (r"So \boxed{4}", True),
        (r"So \boxed{4} and then", True),
        (r"\boxed{\frac{1}{2}", False),
        (r"\boxed{\frac{1}{2}}", True),
        (r"\boxed{\{1, 2\}", False),
        (r"\boxed{\{1, 2\}}", True),
        (r"\boxed{1}, no: \boxed{2", False),
        (r"\boxed 4", False),
        (r"\boxed {4}", True),
        (r"\boxed {4", False),
        ("", False),
    ],
)
def test_closed_boxed(text, closed):
    assert closed_boxed(text) is closed


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ('{"a": {"b": 1}', False),
        ('{"a": {"b": 1}}', True),
        ('Here: {"a": "}"', False),
        ('Here: {"a": "}"} done', True),
        ("{}", True),
        ("{1, 2}", False),
        ("[1]", False),
        ('{"a": ' * 100000 + "}", False),
        ("", False),
    ],
)
def test_closed_json(text, closed):
    assert closed_json(text) is closed


@given(st.dictionaries(st.text(max_size=5), st.recursive(st.integers() | st.text(max_size=5), st.lists)))
def test_an_object_is_closed_with_its_last_brace_and_not_before(value):
    text = json.dumps(value, ensure_ascii=False)
    assert [closed_json(text[:end]) for end in range(len(text) + 1)] == [False] * len(text) + [True]


# -- on our own engine


@pytest.fixture(scope="module")
def decoder():
    return search_decoder()


async def texts_of(decoder, sampling, **overrides):
    """The steps of a branch to its end."""
    root = await decoder.root(PROMPT, sampling)
    steps = []
    while not root.finished:
        steps.append(await root.step(**overrides))
    found = root.text, tuple(root.tokens[root.prompt_length :]), root.finish_reason
    root.release()
    return found, steps


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [3, 8, 40])
def test_a_branch_ends_with_the_first_token_that_the_predicate_takes(decoder, seed, size):
    sampling = SamplingParams(max_tokens=40, max_step_tokens=7, seed=seed)
    asked = []

    def long_enough(text):
        asked.append(text)
        return len(text) >= size

    (whole, tokens, reason), _ = decoder.run(texts_of(decoder, sampling))
    (text, cut, ended), steps = decoder.run(texts_of(decoder, sampling, stop_when=long_enough))
    if len(whole) < size:
        assert (text, cut, ended) == (whole, tokens, reason)
        return
    assert ended == steps[-1].reason == "stop_when"
    assert cut == tokens[: len(cut)]
    assert whole.startswith(text)
    assert len(text) >= size
    assert all(len(before) < size for before in asked[:-1])
    assert asked[-1] == text
    assert "".join(step.text for step in steps) == text


def test_what_the_predicate_raises_fails_the_step_and_the_branch_goes_on(decoder):
    async def failing():
        root = await decoder.root(PROMPT)

        def refuse(text):
            raise LookupError("no")

        with pytest.raises(LookupError, match="no"):
            await root.step(stop_when=refuse)
        step = await root.step(max_step_tokens=3)
        root.release()
        return step

    assert decoder.run(failing()).tokens


def test_an_async_predicate_is_refused():
    """It returns something that is true for any text."""

    async def ends(text):
        return False

    class Ends:
        __call__ = ends

    for predicate in (ends, partial(ends), Ends()):
        with pytest.raises(
            TypeError, match=r"stop_when: got the async function .*, expected a function of a text"
        ):
            SamplingParams(stop_when=predicate)


def test_a_search_takes_such_an_end_for_a_whole_answer(decoder):
    async def searched():
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=30, stop_when=lambda text: len(text) > 9))
        result = await best_of_n(root, n=4, scorer=verifier(vowels))
        root.release()
        return result

    result = decoder.run(searched())
    assert {c.finish_reason for c in result.candidates} <= {"stop_when", "eos"}
    assert any(c.finish_reason == "stop_when" for c in result.candidates)


# -- written down


def test_ready_predicates_can_be_written_and_others_are_refused_by_name():
    for ready in (closed_boxed, closed_json):
        data = json.loads(json.dumps(SamplingParams(stop_when=ready).to_dict()))
        assert SamplingParams.from_dict(data).stop_when is ready
    with pytest.raises(ValueError, match="stop_when: got len, expected one of closed_boxed, closed_json"):
        SamplingParams(stop_when=len).to_dict()
    with pytest.raises(ValueError, match="stop_when: got 'len', expected one of closed_boxed"):
        SamplingParams.from_dict({"stop_when": "len"})
    with pytest.raises(TypeError, match="stop_when: got 'boxed', expected a function of a text"):
        SamplingParams(stop_when="boxed")


def test_a_journal_keeps_the_name_of_a_predicate(decoder, tmp_path):
    def own(text):
        return len(text) > 5

    async def searched():
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=20, stop_when=own))
        run = SearchRun(root, journal=Journal(tmp_path / "search.jsonl"))
        await best_of_n(run, n=2, scorer=verifier(vowels))
        root.release()

    decoder.run(searched())
    header = json.loads((tmp_path / "search.jsonl").read_text().partition("\n")[0])
    assert header["sampling"]["stop_when"] == "own"


# -- on engines that are not ours

ANSWER = ("So ", "\\boxed{", "4", "}.", " Or", " not")


def engine(**told):
    async def complete(request):
        return Completion("".join(ANSWER), "eos", **told)

    return TextDecoder(complete, sampling=SamplingParams(stop_when=closed_boxed))


def step_of(decoder):
    async def stepped():
        root = await decoder.root("Q")
        try:
            return await root.step(), root.text, root.finish_reason
        finally:
            root.release()

    return decoder.run(stepped())


def test_a_completion_is_cut_behind_the_token_that_closes_the_answer():
    ids, logprobs = tuple(range(7)), tuple(-0.5 * i for i in range(7))
    decoder = engine(tokens=ids, logprobs=logprobs, token_texts=(*ANSWER, ""))
    step, text, reason = step_of(decoder)
    assert (text, reason, step.reason) == ("So \\boxed{4}.", "stop_when", "stop_when")
    assert (step.tokens, step.logprobs) == (ids[:4], logprobs[:4])


def test_a_completion_without_tokens_is_cut_behind_the_character():
    step, text, reason = step_of(engine())
    assert (text, reason) == ("So \\boxed{4}", "stop_when")
    assert step.tokens == (-1,)


def test_tokens_without_their_texts_are_refused_by_name():
    with pytest.raises(UnsupportedByEngineError, match="stop_when where it tells tokens without their texts"):
        step_of(engine(tokens=(-1,) * 7))


def test_an_answer_that_never_closes_goes_on_to_its_end():
    async def complete(request):
        return Completion("So \\boxed{4", "eos")

    decoder = TextDecoder(complete, sampling=SamplingParams(stop_when=closed_boxed))
    step, text, reason = step_of(decoder)
    assert (text, reason, step.tokens) == ("So \\boxed{4", "eos", (-1, -1))


def test_a_reply_that_a_strategy_asks_for_is_no_answer():
    """A verdict may quote a box, and is not held to the form of an answer."""
    verdict = r"A says \boxed{1}. B is right."
    judged = []

    def script(prefix, k):
        if not prefix.startswith("Q: "):
            judged.append(prefix)
            return verdict, "eos"
        return rf"so \boxed{{{k}}} and on", "eos"

    found = run_scripted(
        scripted_decoder(script),
        knockout,
        "Q: ",
        sampling=SamplingParams(stop_when=closed_boxed),
        n=2,
        num_comparisons=1,
        compare_prompt="{first}|{second}",
    )
    assert judged
    assert all(c.text.strip().endswith("}") for c in found.candidates)
    assert found.best.text.strip() == r"so \boxed{1}"
