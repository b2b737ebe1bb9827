"""Selective answering against a transcription on random words, and what a threshold earns."""

import math

import pytest
from plain_scripts import draw
from scripted import run_scripted, scripted_decoder, words
from thinking_scripts import SEEDS, Plain, wild
from tts_decode import SamplingParams, search
from tts_decode.errors import UnsupportedByEngineError
from tts_decode.select import selective_utility

QUESTION, END, FINAL = "Q: ", "</think>", " So: "
CAP, LONGEST = 14, 40


def told(seed):
    """The wild script with log-probabilities that differ; the answer itself ends once."""
    thinking, answering = wild(seed, ends=("eos", "stop_string")), wild(seed)

    def with_logprobs(prefix, k):
        script = answering if FINAL in prefix else thinking
        text, reason, logprobs, entropies = script(prefix, k)
        return text, reason, [-draw(seed, prefix, k, i) / 4 for i in range(len(logprobs))], entropies

    return with_logprobs


def plain_line(ask, script):
    """Thinking to the cap, "Wait" in place of each end; then the answer and its probability."""
    tokens = []
    while len(tokens) < CAP:
        said, reason = ask(QUESTION + "".join(tokens), CAP - len(tokens))
        tokens += said
        if reason == "length":
            break
        tokens.pop()  # the end's token, or the word that holds the end of the thinking
        if len(tokens) >= CAP:
            break
        tokens.append("Wait")
    text = "".join(tokens) + END + FINAL
    logprob = 0.0
    k = ask.asked[QUESTION + text]
    said, reason = ask(QUESTION + text, LONGEST)
    logprob += sum(script(QUESTION + text, k)[2])
    return text + "".join(said), math.exp(logprob)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_the_answer_is_given_where_its_probability_reaches_the_threshold(seed, threshold):
    script = told(seed)
    expected, confidence = plain_line(Plain(script), script)
    result = run_scripted(
        scripted_decoder(script),
        search.selective_answer,
        QUESTION,
        sampling=SamplingParams(max_tokens=LONGEST),
        max_tokens_thinking=CAP,
        threshold=threshold,
        end_of_thinking=END,
        final_answer=FINAL,
        abstention="No idea.",
    )
    line = result.candidates[0]
    assert line.text == expected
    assert line.score == pytest.approx(confidence)
    assert result.answer == (expected if confidence >= threshold else "No idea.")
    assert result.best.complete


def test_both_ways_occur():
    chances = [plain_line(Plain(told(seed)), told(seed))[1] for seed in SEEDS]
    assert min(chances) < 0.3 <= max(chances)


def test_lines_vote_by_confidence():
    answers = {0: ("4", -0.1), 1: ("5", -0.7), 2: ("5", -0.8), 3: ("4", -3.0)}

    def script(prefix, k):
        if prefix == QUESTION:
            return f"t{k} " * 3, "stop_string", [-1.0] * 3
        line = int(prefix.removeprefix(QUESTION).split()[0][1:])
        text, logprob = answers[line]
        return text, "eos", [logprob]

    result = run_scripted(
        scripted_decoder(script),
        search.selective_answer,
        QUESTION,
        n=4,
        max_tokens_thinking=3,
        end_of_thinking="",
        final_answer=FINAL,
        extract=lambda text: words(text)[-1],
        threshold=0.4,
    )
    votes = {"4": math.exp(-0.1) + math.exp(-3.0), "5": math.exp(-0.7) + math.exp(-0.8)}
    assert result.votes == pytest.approx(votes)
    assert (result.answer.split()[0], result.best.score) == ("t0", pytest.approx(math.exp(-0.1)))


def test_hidden_log_probabilities_are_named():
    decoder = scripted_decoder(lambda prefix, k: ("1 2 3", "eos", [math.nan] * 3))
    with pytest.raises(UnsupportedByEngineError, match="selective_answer weighs answers"):
        run_scripted(decoder, search.selective_answer, QUESTION, max_tokens_thinking=3)


def test_what_a_threshold_earns():
    confidences, correct = [0.9, 0.2, 0.6, 0.5, 0.95], [True, False, False, True, True]
    assert selective_utility(confidences, correct, 0.6) == (0.6, 2 / 3, (2 - 1) / 5)
    assert selective_utility(confidences, correct, 0.0, wrong=0.0) == (1.0, 0.6, 0.6)
    assert selective_utility(confidences, correct, 0.99, wrong=-20.0) == (0.0, None, 0.0)
    assert selective_utility(confidences, correct, 0.55, wrong=-20.0).utility == (2 - 20) / 5
    with pytest.raises(ValueError, match="correct: got 1 entries for 2 confidences"):
        selective_utility([0.5, 0.5], [True], 0.5)
