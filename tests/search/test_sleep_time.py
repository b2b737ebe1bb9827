"""Sleep-time compute: which prompts are asked, in which order, and what stays resident."""

import pytest
from plain_scripts import answer_of, number, prompts
from scripted import counted, run_scripted, scripted_decoder
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder, search

PROMPTS = {"notes_prompt": "C({context})N({notes})", "answer_prompt": "C({context})N({notes})Q({question})"}


def told(seed):
    """Notes of one word, some of them behind thinking; one reply in four says that nothing is missing."""

    def script(prefix, k):
        drawn = number(seed, prefix, k)
        if "Q(" in prefix:
            return f"so {drawn % 3}", "eos"
        return (
            "DONE." if drawn % 4 == 0 else f"hm </think> n{drawn % 999}" if drawn % 2 else f"n{drawn % 999}"
        ), "eos"

    return script


def plain_notes(ask, context, rounds):
    notes, asked = "[empty]", []
    for _ in range(rounds):
        prompt = f"C({context})N({notes})"
        asked.append(prompt)
        said = ask(prompt)[0].split("</think>")[-1].strip()
        if said == "DONE.":
            break
        notes = said
    return notes, asked


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("given", "prompt", "context", "question"),
    [
        ("", "Tom has 3. He buys 4! How many?", "Tom has 3. He buys 4!", "How many?"),
        ("", "How many?", "How many?", "How many?"),
        ("Tom has 3.", "A. How many?", "Tom has 3.", "A. How many?"),
    ],
)
def test_notes_are_written_without_the_question_and_it_is_answered_with_them(
    seed, given, prompt, context, question
):
    ask = counted(told(seed))
    notes, asked = plain_notes(ask, context, 4)
    last = f"C({context})N({notes})Q({question})"
    answers = [ask(last)[0] for _ in range(5)]
    decoder = scripted_decoder(told(seed))
    result = run_scripted(
        decoder, search.sleep_time, prompt, n=5, max_rounds=4, context=given, extract=answer_of, **PROMPTS
    )
    assert prompts(decoder) == [*asked, *[last] * 5]
    assert [c.text for c in result.candidates] == answers
    assert result.votes == {a: answers.count(f"so {a}") for a in result.votes}
    assert sum(result.votes.values()) == 5


def test_rounds_end_early_and_late():
    counts = {len(plain_notes(counted(told(seed)), "Tom has 3.", 4)[1]) for seed in range(10)}
    assert {1, 4} < counts


def test_given_notes_are_not_written_again():
    decoder = scripted_decoder(told(1))
    run_scripted(decoder, search.sleep_time, "Why?", context="Tom.", notes="n7", **PROMPTS)
    assert prompts(decoder) == ["C(Tom.)N(n7)Q(Why?)"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("pinned", [False, True])
def test_context_and_notes_stay_resident_for_later_questions(pinned):
    decoder = TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=64 << 20)
    context = "Tom has three apples and buys four more of them. " * 4
    sampling = SamplingParams(max_tokens=6)

    async def searched():
        notes = await search.think_ahead(
            decoder, context, max_rounds=2, sampling=sampling, keep=decoder.pin if pinned else None, **PROMPTS
        )
        assert decoder.stats().branches == 0
        costs = []
        for question in ("How many?", "Who is it?"):
            root = await decoder.root(question, sampling)
            before = decoder.stats().forward_tokens
            result = await search.sleep_time(root, context=context, notes=notes, **PROMPTS)
            costs.append(decoder.stats().forward_tokens - before)
            assert result.candidates[0].tokens
            root.release()
        return costs

    for cost in decoder.run(searched()):
        assert (cost < 60) == pinned


def test_think_ahead_wants_a_context():
    decoder = scripted_decoder(told(0))
    with pytest.raises(ValueError, match="context: got no text"):
        decoder.run(search.think_ahead(decoder, ""))
