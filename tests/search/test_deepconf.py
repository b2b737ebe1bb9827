"""DeepConf, online and offline, against a transcription of the paper's rules, and its token confidences."""

import math

import pytest
import torch
from plain_scripts import answer_of, draw, number
from scripted import run_scripted, scripted_decoder
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder, search
from tts_decode.errors import UnsupportedByEngineError

QUESTION = "Q: "


class Traces:
    """Traces of several lengths; the first word names the trace, the last one is its answer."""

    def __init__(self, seed, longest=20):
        self.seed, self.longest = seed, longest

    def words(self, k):
        length = 3 + number(self.seed, "length", k) % self.longest
        answer = str(number(self.seed, "answer", k) % 3)
        return [f"t{k} ", *(f"w{i} " for i in range(length)), answer]

    def entropies(self, k):
        """One a word: each trace has a level of its own, and dips."""
        level = draw(self.seed, "level", k)
        return [0.2 + level + draw(self.seed, "entropy", k, i) for i in range(len(self.words(k)))]

    def confidences(self, k):
        """exp(-entropy) a token; the end has entropy 0."""
        return [*(math.exp(-h) for h in self.entropies(k)), 1.0]

    def answer(self, k):
        return self.words(k)[-1]

    def __call__(self, prefix, k):
        said = prefix.removeprefix(QUESTION)
        if said:
            k = int(said.split()[0][1:])
        words, entropies = self.words(k), self.entropies(k)
        done = next(i for i in range(len(words) + 1) if "".join(words[:i]) == said)
        rest = words[done:]
        return "".join(rest), "eos", [-1.0] * len(rest), entropies[done:]


def plain_groups(confidences, window):
    if len(confidences) < window:
        return [sum(confidences) / len(confidences)]
    return [sum(confidences[i : i + window]) / window for i in range(len(confidences) - window + 1)]


def plain_percentile(values, percent):
    """Between the two neighbours of place (n - 1) * percent / 100 of the sorted values."""
    ordered, place = sorted(values), (len(values) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def plain_online(traces, most, warmup, wave, eta, window, consensus):
    """Votes, bar, and for each trace after the warm-up the token after which it stops, or None."""
    lowest = [min(plain_groups(traces.confidences(k), window)) for k in range(most)]
    bar = plain_percentile(lowest[:warmup], 100 - eta)
    votes, stops = {}, {}

    def add(k):
        if lowest[k] >= bar:
            votes[traces.answer(k)] = votes.get(traces.answer(k), 0.0) + lowest[k]

    for k in range(warmup):
        add(k)
    drawn = warmup
    while drawn < most and max(votes.values()) / sum(votes.values()) < consensus:
        for k in range(drawn, min(drawn + wave, most)):
            confidences = traces.confidences(k)
            means = plain_groups(confidences, window) if len(confidences) >= window else []
            fallen = [window + i for i, mean in enumerate(means) if mean < bar]
            stops[k] = fallen[0] if fallen and fallen[0] < len(confidences) else None
            add(k)
        drawn = min(drawn + wave, most)
    return votes, bar, stops, drawn


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("looks", [1, 3])
@pytest.mark.parametrize("consensus", [0.6, 1.0])
def test_traces_stop_and_vote_as_in_the_paper(seed, looks, consensus):
    traces, window = Traces(seed), 5
    votes, _, stops, drawn = plain_online(traces, 20, 6, 4, 40.0, window, consensus)
    result = run_scripted(
        scripted_decoder(traces),
        search.deepconf,
        QUESTION,
        max_samples=20,
        num_warmup=6,
        parallel=4,
        eta=40.0,
        window=window,
        signal="entropy",
        num_between=looks,
        threshold=consensus,
        extract=answer_of,
    )
    assert result.votes == pytest.approx(votes)
    assert answer_of(result.answer) == max(votes, key=votes.get)
    finished = {int(c.text.split()[0][1:]) for c in result.candidates}
    seen = {}  # tokens of each trace: up to the first look at or after the token at which it fell
    for k in range(drawn):
        stop, whole = stops.get(k), len(traces.words(k)) + 1
        seen[k] = whole if stop is None else min(whole, math.ceil(stop / looks) * looks)
    assert finished == {k for k in range(drawn) if seen[k] == len(traces.words(k)) + 1}
    assert result.stats.generated_tokens == sum(seen.values())
    winners = [k for k in finished if traces.answer(k) == answer_of(result.answer)]
    best = max(winners, key=lambda k: min(plain_groups(traces.confidences(k), window)))
    assert result.answer == "".join(traces.words(best))


def test_some_traces_are_stopped_and_some_are_not():
    counts = [0, 0]
    for seed in range(8):
        for stop in plain_online(Traces(seed), 20, 6, 4, 40.0, 5, 1.0)[2].values():
            counts[stop is None] += 1
    assert min(counts) > 10


def plain_measure(confidences, measure, window):
    groups = plain_groups(confidences, window)
    if measure == "lowest":
        return min(groups)
    if measure == "bottom":
        few = max(1, int(len(groups) * 0.1))
        return sum(sorted(groups)[:few]) / few
    last = confidences[-window:] if measure == "tail" else confidences
    return sum(last) / len(last)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("measure", ["lowest", "bottom", "tail", "mean"])
def test_offline_the_most_confident_traces_with_an_answer_vote(seed, measure):
    def extract(text):
        return answer_of(text) if answer_of(text) != "2" else None

    traces, window = Traces(seed, longest=40), 4
    found = [k for k in range(12) if traces.answer(k) != "2"]
    strength = {k: plain_measure(traces.confidences(k), measure, window) for k in found}
    bar = plain_percentile(list(strength.values()), 70)
    votes = {}
    for k, value in strength.items():
        if value >= bar:
            votes[traces.answer(k)] = votes.get(traces.answer(k), 0.0) + value
    result = run_scripted(
        scripted_decoder(traces),
        search.deepconf,
        QUESTION,
        max_samples=12,
        num_warmup=12,
        eta=30.0,
        window=window,
        measure=measure,
        signal="entropy",
        extract=extract,
    )
    assert len(result.candidates) == 12
    assert result.votes == pytest.approx(votes)
    assert answer_of(result.answer) == max(votes, key=votes.get)


@pytest.mark.usefixtures("one_thread")
def test_confidence_is_of_the_likeliest_tokens_of_the_model():
    model = tiny_model()
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=64 << 20)
    result = run_scripted(
        decoder,
        search.deepconf,
        "What is 3 + 4?",
        sampling=SamplingParams(max_tokens=12),
        max_samples=3,
        num_warmup=3,
        eta=100.0,
        window=5,
        num_likeliest=7,
    )
    for candidate in result.candidates:
        ids = [*b"What is 3 + 4?", *candidate.tokens]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        logprobs = torch.log_softmax(logits, -1)[len(ids) - len(candidate.tokens) - 1 : -1]
        confidences = (-logprobs.topk(7, -1).values.mean(-1)).tolist()
        assert candidate.score == pytest.approx(min(plain_groups(confidences, 5)), abs=1e-4)


def test_what_the_engine_does_not_tell_is_named():
    decoder = scripted_decoder(lambda prefix, k: ("1", "eos", [-1.0], [math.nan]))
    for signal, message in (("top", "top_logprobs"), ("entropy", "entropies")):
        with pytest.raises(UnsupportedByEngineError, match=message):
            run_scripted(decoder, search.deepconf, QUESTION, signal=signal)


def test_only_the_lowest_group_can_stop_a_trace():
    with pytest.raises(ValueError, match="measure: got 'tail', expected 'lowest'"):
        run_scripted(scripted_decoder(Traces(0)), search.deepconf, QUESTION, measure="tail")
