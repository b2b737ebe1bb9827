"""ATTS against a plain transcription of its loop, and its guarantees with several answers in flight."""

import math
from collections import Counter

import pytest
from plain_scripts import number
from scripted import run_scripted, scripted_decoder, words
from tts_decode import SamplingParams
from tts_decode.search import atts

STEPS = SamplingParams(stop=("\n",), seed=1)
PROMPT = "Q: "


def draft_script(seed):
    def script(prefix, k):
        draw = number(seed, prefix, k)
        if prefix.count("\n") >= 6 or draw % 6 == 0:
            return f"={draw % 3}", "eos"
        return f"d{draw % 40}\n", "stop_string"

    return script


def target_script(seed):
    def script(prefix, k):
        draw = number(seed, "target", prefix)
        if draw % 7 == 0:
            return f"= {draw % 3}", "eos"
        return f"t{draw % 40} so\n", "stop_string"

    return script


def read_by(seed, record=None):
    """The target's log-probabilities of the words of a step; those of draft steps are exchangeable."""

    def logprobs_of(prefix, text):
        values = [-(number(seed, "read", prefix, text, i) % 900) / 300 for i in range(len(words(text)))]
        if record is not None:
            record.append((prefix, text, math.exp(-sum(values) / len(values))))
        return values

    return logprobs_of


def decoders(seed, record=None, latency=None):
    return (
        scripted_decoder(draft_script(seed), latency=latency, logprobs_of=read_by(seed)),
        scripted_decoder(target_script(seed), logprobs_of=read_by(seed, record)),
    )


def published(seed, calibration, keep_rejected):
    """The authors' loop for one sample over a fixed set of perplexities, with 0.6 for the percentile, and its
    early stop; the text, and how many steps the target wrote. A rejected step stays in the text there."""
    text, said_by_target = "", 0
    for _ in range(40):
        step, reason = draft_script(seed)(PROMPT + text, 0)
        logprobs = read_by(seed)(PROMPT + text, step)
        perplexity = math.exp(-sum(logprobs) / len(logprobs))
        if sum(other < perplexity for other in calibration) / len(calibration) >= 0.6:
            text += step if keep_rejected else ""
            step, reason = target_script(seed)(PROMPT + text, 0)
            said_by_target += 1
        text += step
        if reason == "eos" or "\\boxed{" in text or "ANSWER: " in text:
            break
    return text, said_by_target


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("keep_rejected", [True, False])
def test_one_answer_is_written_as_by_the_published_loop(seed, keep_rejected):
    calibration = [1 + number(seed, i) % 100 / 20 for i in range(5)]  # 3 of 5 are the 60th percentile
    draft, target = decoders(seed)
    options = {"n": 1, "target_decoder": target, "calibration": calibration, "keep_rejected": keep_rejected}
    result = run_scripted(draft, atts, PROMPT, sampling=STEPS, **options)
    text, said_by_target = published(seed, calibration, keep_rejected)
    assert result.answer == text
    assert len(target.complete.calls) == said_by_target
    assert target.stats().branches == 0


@pytest.mark.parametrize(
    ("stated", "ends"), [("so \\boxed{4} and\n", True), ("answer: B or\n", True), ("so \\boxed{4\n", False)]
)
def test_an_answer_that_is_stated_ends_the_line(stated, ends):
    def script(prefix, k):
        return (stated, "stop_string") if prefix.count("\n") == 2 else ("on\n", "stop_string")

    def texts(**options):
        decoder = scripted_decoder(script, logprobs_of=lambda prefix, text: [-1.0] * len(words(text)))
        result = run_scripted(decoder, atts, PROMPT, sampling=STEPS, n=2, alpha=0.0, max_steps=5, **options)
        return {candidate.text for candidate in result.candidates}

    whole = "on\n" * 2 + stated + "on\n" * 2
    assert texts() == {"on\n" * 2 + stated if ends else whole}
    assert texts(early_stop=False) == {whole}


@pytest.mark.parametrize("seed", range(4))
def test_a_question_calibrates_itself_by_first_steps(seed):
    """16 draft steps are read and dropped; all steps of the answers are ranked among theirs alone."""
    record, asked = [], []

    def script(prefix, k):
        asked.append((prefix, k))
        return draft_script(seed)(prefix, k)

    draft = scripted_decoder(script, logprobs_of=read_by(seed))
    target = scripted_decoder(target_script(seed), logprobs_of=read_by(seed, record))
    result = run_scripted(draft, atts, PROMPT, sampling=STEPS, n=3, target_decoder=target)
    drawn = [draft_script(seed)(PROMPT, k)[0] for k in range(16)]
    assert asked[:16] == [(PROMPT, k) for k in range(16)]
    assert sorted(text for _, text, _ in record[:16]) == sorted(drawn)
    calibration = [perplexity for _, _, perplexity in record[:16]]
    read = [entry for entry in record[16:] if entry[1].startswith(("d", "="))]
    rejected = Counter(
        prefix for prefix, _, ppl in read if sum(other < ppl for other in calibration) / 16 >= 0.6
    )
    assert rejected == Counter(call.prefix for call in target.complete.calls)
    assert sum(node.status == "pruned" and node.parent == 0 for node in result.tree) >= 16


@pytest.mark.parametrize("seed", range(8))
def test_p_values_follow_the_steps_that_were_read(seed):
    """Online calibration for one sample: each step joins the set after it was ranked."""
    calibration = [1 + number(seed, i) % 100 / 20 for i in range(6)]
    draft, target = decoders(seed)
    options = {"n": 1, "target_decoder": target, "calibration": calibration, "rule": "p_value"}
    result = run_scripted(draft, atts, PROMPT, sampling=STEPS, **options)

    seen, text = list(calibration), ""
    for _ in range(40):
        step, reason = draft_script(seed)(PROMPT + text, 0)
        logprobs = read_by(seed)(PROMPT + text, step)
        perplexity = math.exp(-sum(logprobs) / len(logprobs))
        percentile = sum(other < perplexity for other in seen) / (len(seen) + 1)
        seen.append(perplexity)
        if percentile >= 0.6 - 1e-9:  # among 1 + len(seen) perplexities, its own included
            step, reason = target_script(seed)(PROMPT + text, 0)
        text += step
        if reason == "eos":
            break
    assert result.answer == text


ONLINE = {"rule": "p_value", "num_calibration": 0}


@pytest.mark.parametrize("seed", range(4))
def test_several_answers_share_one_calibration_set_as_it_grows(seed):
    """In the order in which the target read the steps, each is judged by those before it; a rejected one is
    in no answer, an accepted one is."""
    record = []
    draft, target = decoders(seed, record, latency=lambda prefix, k: number(seed, prefix, k) % 5)
    result = run_scripted(
        draft, atts, PROMPT, sampling=STEPS, n=6, target_decoder=target, alpha=0.3, **ONLINE
    )
    read = [entry for entry in record if entry[1].startswith(("d", "="))]
    rescued = Counter(call.prefix for call in target.complete.calls)
    rejected = Counter()
    texts = [PROMPT + candidate.text for candidate in result.candidates]
    for i, (prefix, text, perplexity) in enumerate(read):
        as_odd = 1 + sum(other >= perplexity for _, _, other in read[:i])  # the step itself is one
        if as_odd / (1 + i) <= 0.3 + 1e-12:
            rejected[prefix] += 1
        else:
            assert any(whole.startswith(prefix + text) for whole in texts)
    assert rejected == rescued
    assert rejected


@pytest.mark.parametrize("alpha", [0.1, 0.4])
def test_the_target_takes_over_at_the_rate_alpha(alpha):
    """Perplexities of one word each, as draft steps have here, are exchangeable. Over 40 searches with 50 of
    them known before, the share of rejected steps lies within 4 binomial standard errors of alpha; p-values
    on a grid of 1/51 or finer take at most 0.02 from it, which the bound allows for."""
    read = rejected = 0
    for seed in range(40):
        record = []
        calibration = [math.exp((number(seed, "earlier", i) % 900) / 300) for i in range(50)]
        draft, target = decoders(seed, record)
        options = {"n": 4, "target_decoder": target, "alpha": alpha, "calibration": calibration}
        options |= ONLINE
        run_scripted(draft, atts, PROMPT, sampling=STEPS, **options)
        read += len(record)
        rejected += len(target.complete.calls)
    assert read > 400
    error = math.sqrt(alpha * (1 - alpha) / read)
    assert alpha - 4 * error - 0.02 < rejected / read < alpha + 4 * error


def test_no_answer_waits_for_another():
    """One draft takes a hundred times as long for each step; the others end before its second step."""

    def script(prefix, k):
        if prefix == PROMPT:
            return ("slow\n" if k == 0 else f"quick {k}\n"), "stop_string"
        return ("more\n", "stop_string") if prefix.count("\n") < 4 else ("= 1", "eos")

    def latency(prefix, k):
        return 300 if "slow" in prefix else 3

    decoder = scripted_decoder(
        script, latency=latency, logprobs_of=lambda prefix, text: [-1.0] * len(words(text))
    )
    result = run_scripted(decoder, atts, PROMPT, sampling=STEPS, n=4, alpha=0.0, **ONLINE)
    assert ["slow" in candidate.text for candidate in result.candidates] == [True, False, False, False]
    by_time = sorted(result.candidates, key=lambda candidate: result.tree[candidate.node].ended)
    assert "slow" in by_time[-1].text
    slow = [i for i, call in enumerate(decoder.complete.calls) if "slow" in call.prefix]
    assert min(slow) >= len(decoder.complete.calls) - 4


def test_the_vote_decides_and_the_target_breaks_it():
    """Among the answers that most gave, the one whose text the target finds likeliest."""
    texts = ["a answer is 1", "b answer is 2", "c answer is 2", "d answer is 3"]
    likely = {"a": -0.1, "b": -2.0, "c": -1.0, "d": -0.2}

    def logprobs_of(prefix, text):
        return [likely[text[0]]] * len(words(text))

    decoder = scripted_decoder(lambda prefix, k: (texts[k], "eos"), logprobs_of=logprobs_of)
    result = run_scripted(decoder, atts, PROMPT, sampling=STEPS, n=4, alpha=0.0, **ONLINE)
    assert result.votes == {"2": 2, "1": 1, "3": 1}
    assert result.answer == texts[2]
    assert {candidate.text[0]: candidate.score for candidate in result.candidates} == pytest.approx(likely)


def test_max_steps_ends_answers_as_they_stand():
    decoder = scripted_decoder(
        lambda prefix, k: ("on\n", "stop_string"), logprobs_of=lambda prefix, text: [-1.0] * len(words(text))
    )
    result = run_scripted(decoder, atts, PROMPT, sampling=STEPS, n=2, max_steps=3, **ONLINE)
    assert [candidate.text for candidate in result.candidates] == ["on\n" * 3] * 2
    assert not any(candidate.complete for candidate in result.candidates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, r"alpha: got 1\.0"),
        ({"max_steps": 0}, "max_steps: got 0"),
        ({"num_calibration": -1}, "num_calibration: got -1"),
        ({"rule": "rank"}, "rule: got 'rank', expected one of 'percentile', 'p_value'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        run_scripted(scripted_decoder(draft_script(0)), atts, PROMPT, n=2, **options)
