"""Strategies that write answers again, each against a plain transcription of its paper's algorithm."""

import math
import random
import zlib
from collections import Counter

import pytest
from scipy.special import expit
from scipy.stats import entropy
from scripted import run_scripted, scorer, scripted_decoder, words
from search_options import length_mod_3
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.search import (
    SearchRun,
    feedback_edit,
    heart,
    iterative_agent_decoding,
    magicore,
    multi_round,
    revise,
    sets,
    t1_verify,
    three_d,
    tpo,
)
from tts_decode.select import vote_confidence

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "Q: "
SEEDS = range(8)


def draw(*values):
    """A number in [0, 1) that depends on the values alone."""
    return zlib.crc32(repr(values).encode()) / 2**32


def answer_of(text):
    return text.split()[-1]


def score_of(text):
    return draw("score", text)


class Model:
    """The script, and the plain algorithms' way to ask it. Every text is another one, so that lines do not
    meet; it ends in one of `kinds` answers, or in a verdict where the prompt ends with "check".
    steps: lines of a text."""

    def __init__(self, seed, kinds=3, steps=1):
        self.seed, self.kinds, self.steps = seed, kinds, steps
        self.asked = Counter()
        self.likelihood = {}

    def __call__(self, prefix, k):
        u = draw(self.seed, prefix, k)
        body, end = f"t </think> w{int(1e9 * u)} so " + "hm " * (int(1e6 * u) % 4), "eos"
        if prefix.endswith("check"):
            text = f"{body}Verdict: {'correct' if u < 0.4 else 'wrong'}"
        elif prefix.rpartition("refine")[2].count("\n") < self.steps - 1:
            text, end = f"step w{int(1e9 * u)}\n", "stop_string"
        else:
            text = f"{body}{int(self.kinds * (1e3 * u % 1))}"
        return text, end, [-3 * draw(u, i) for i in range(len(words(text)))]

    def ask(self, prompt):
        """One whole text after the prompt."""
        said, logprobs, end = "", [], ""
        while end != "eos":
            text, end, some = self(prompt + said, self.asked[prompt + said])
            self.asked[prompt + said] += 1
            said += text
            logprobs += some
        self.likelihood[said] = sum(logprobs) / (len(logprobs) + 1)  # the end is a token too
        return said

    def voted(self, texts, weights=None):
        """The likeliest text of those with the answer of most votes."""
        tally = Counter()
        for text, weight in zip(texts, weights or [1] * len(texts), strict=True):
            tally[answer_of(text)] += weight
        winner = tally.most_common(1)[0][0]
        return max((t for t in texts if answer_of(t) == winner), key=self.likelihood.get)


def found(result):
    return sorted(candidate.text for candidate in result.candidates)


def prompts(decoder):
    return [call.prefix for call in decoder.complete.calls]


# -- lines of answers


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scored", [False, True])
def test_multi_round_hands_on_the_last_answer_alone(seed, scored):
    model, last, all_of_them = Model(seed), [], []
    for _ in range(5):
        answer = model.ask(QUESTION)
        all_of_them.append(answer)
        for _ in range(2):
            answer = model.ask(f"{QUESTION}<{answer.split('</think> ')[1]}> again")
            all_of_them.append(answer)
        last.append(answer)
    result = run_scripted(
        scripted_decoder(Model(seed)),
        multi_round,
        QUESTION,
        n=5,
        max_rounds=2,
        refine_prompt="{question}<{answer}> again",
        scorer=scorer(score_of) if scored else None,
        extract=answer_of,
    )
    assert found(result) == sorted(all_of_them)
    assert result.answer == (max(all_of_them, key=score_of) if scored else model.voted(last))


def plain_sets(model, n, rounds):
    last, corrections = [], 0
    for _ in range(n):
        attempt, history = model.ask(QUESTION), QUESTION
        for _ in range(rounds):
            history += f"\n\nAttempt:\n{attempt}"
            check = model.ask(history + "check")
            if check.endswith("correct"):
                break
            history += f"\n\nCheck of this attempt:\n{check}"
            attempt = model.ask(history + "again")
            corrections += 1
        last.append(attempt)
    return last, corrections


def test_sets_corrects_what_it_finds_wrong():
    made = set()
    for seed in SEEDS:
        model = Model(seed)
        last, corrections = plain_sets(model, 5, 2)
        result = run_scripted(
            scripted_decoder(Model(seed)),
            sets,
            QUESTION,
            n=5,
            max_rounds=2,
            verify_prompt="{history}check",
            refine_prompt="{history}again",
            extract=answer_of,
        )
        assert len(result.candidates) == 5 + corrections
        assert set(last) <= set(found(result))
        assert result.answer == model.voted(last)
        assert result.votes == Counter(map(answer_of, last))
        made.add(corrections)
    assert len(made) > 2


def test_sets_takes_a_check_without_a_verdict_as_wrong():
    def script(prefix, k):
        return ("I cannot tell." if prefix.endswith("check") else f"say {len(prefix)}"), "eos"

    result = run_scripted(
        scripted_decoder(script),
        sets,
        QUESTION,
        n=1,
        max_rounds=3,
        verify_prompt="{history}check",
        refine_prompt="{history}again",
    )
    assert len(result.candidates) == 4
    assert result.best == result.candidates[-1]


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_revise_goes_on_behind_what_it_would_not_accept(rounds):
    def logprobs_of(prefix, text):
        assert text in ("ok? yes", "ok? no")
        return [-2.0, -1.0 - 4 * draw(prefix, text)]  # the question's token, then the choice's

    def accepted(text):
        yes, no = (math.exp(logprobs_of(QUESTION + text, f"ok? {choice}")[1]) for choice in ("yes", "no"))
        return yes / (yes + no)

    lengths = set()
    for seed in SEEDS:
        model, last, everything = Model(seed), [], []
        for _ in range(6):
            text = model.ask(QUESTION)
            everything.append(text)
            for _ in range(rounds):
                if accepted(text) >= 0.6:
                    break
                text += " Wait: " + model.ask(QUESTION + text + " Wait: ")
                everything.append(text)
            last.append(text)
        result = run_scripted(
            scripted_decoder(
                Model(seed),
                logprobs_of=lambda prefix, text: [0.0] if text == " Wait: " else logprobs_of(prefix, text),
            ),
            revise,
            QUESTION,
            n=6,
            max_rounds=rounds,
            threshold=0.6,
            verify_prompt="ok? ",
            accept="yes",
            refine="no",
            rethink=" Wait: ",
            extract=answer_of,
        )
        assert found(result) == sorted(everything)
        assert {c.text: c.score for c in result.candidates} == pytest.approx(
            {t: accepted(t) for t in everything}
        )
        tally = Counter()
        for text in last:
            tally[answer_of(text)] += accepted(text)
        assert result.votes == pytest.approx(dict(tally))
        assert answer_of(result.answer) == tally.most_common(1)[0][0]
        lengths.add(len(everything))
    assert len(lengths) > 1 or rounds == 0


# -- rounds led by a scorer


@pytest.mark.parametrize("n", [1, 3])
def test_iad_shows_the_best_and_the_worst_so_far(n):
    for seed in SEEDS:
        model = Model(seed)
        texts = [model.ask(QUESTION) for _ in range(n)]
        for _ in range(2):
            best, worst = max(texts, key=score_of), min(texts, key=score_of)
            prompt = f"{QUESTION}+{score_of(best):.3f} {best}-{score_of(worst):.3f} {worst}"
            texts += [model.ask(prompt) for _ in range(n)]
        result = run_scripted(
            scripted_decoder(Model(seed)),
            iterative_agent_decoding,
            QUESTION,
            n=n,
            max_rounds=2,
            scorer=scorer(score_of),
            refine_prompt="{question}+{best_score:.3f} {best}-{worst_score:.3f} {worst}",
        )
        assert found(result) == sorted(texts)
        assert result.answer == max(texts, key=score_of)


def test_tpo_turns_the_preference_into_words_and_the_words_into_answers():
    for seed in SEEDS:
        model = Model(seed)
        texts = [model.ask(QUESTION) for _ in range(4)]
        for _ in range(2):
            pair = f"{QUESTION}{max(texts, key=score_of)} | {min(texts, key=score_of)}"
            loss = model.ask(f"{pair} why?")
            gradient = model.ask(f"{pair} {loss} how?")
            texts += [model.ask(f"{pair} {loss} {gradient} do") for _ in range(4)]
        result = run_scripted(
            scripted_decoder(Model(seed)),
            tpo,
            QUESTION,
            n=4,
            max_rounds=2,
            scorer=scorer(score_of),
            loss_prompt="{question}{chosen} | {rejected} why?",
            gradient_prompt="{question}{chosen} | {rejected} {loss} how?",
            update_prompt="{question}{chosen} | {rejected} {loss} {gradient} do",
        )
        assert found(result) == sorted(texts)
        assert result.answer == max(texts, key=score_of)


HEART = {
    "negative": ["bad", "sad"],
    "positive": ["good"],
    "refine_prompt": "{question}{answer} {cue}",
    "synthesis_prompt": "{question}{answers} all",
    "extract": answer_of,
}


def plain_heart(model, n, rounds, accepts):
    lines = []
    for number in range(n):
        texts = [model.ask(QUESTION)]
        for cue in (["bad", "good", "sad", "good", "bad"], ["sad", "good", "bad", "good", "sad"])[number % 2][
            :rounds
        ]:
            if accepts(texts[-1]):
                break
            texts.append(model.ask(f"{QUESTION}{texts[-1]} {cue}"))
        lines += texts
    return lines


def test_heart_alternates_its_tone_until_the_verifier_accepts():
    counts = set()
    for seed in SEEDS:
        texts = plain_heart(Model(seed), 3, 5, lambda text: score_of(text) >= 0.7)
        result = run_scripted(
            scripted_decoder(Model(seed)),
            heart,
            QUESTION,
            n=3,
            max_rounds=5,
            scorer=scorer(score_of),
            threshold=0.7,
            **HEART,
        )
        assert found(result) == sorted(texts)
        assert result.answer == max(texts, key=score_of)
        counts.add(len(texts))
    assert len(counts) > 1


def test_heart_without_a_verifier_writes_one_answer_of_all():
    for seed in SEEDS:
        model = Model(seed)
        texts = plain_heart(model, 2, 3, lambda text: False)
        shown = "\n\n".join(f"Attempt {i}:\n{text}" for i, text in enumerate(texts, 1))
        result = run_scripted(scripted_decoder(Model(seed)), heart, QUESTION, n=2, max_rounds=3, **HEART)
        assert result.answer == model.ask(f"{QUESTION}{shown} all")
        assert found(result) == sorted([*texts, result.answer])


# -- MAgICoRe


@pytest.mark.parametrize("seed", range(3))
def test_vote_confidence_is_the_rule_of_the_code(seed):
    rng = random.Random(seed)
    for count in range(1, 7):
        votes = [rng.random() for _ in range(count)]
        assert vote_confidence(votes) == pytest.approx(2 * (1 - expit(entropy(votes))))
        assert vote_confidence([3 * vote for vote in votes]) == pytest.approx(vote_confidence(votes))
    assert vote_confidence([5.0]) == 1
    assert vote_confidence([0.0, 0.0, 0.0]) == pytest.approx(0.5)
    assert vote_confidence([]) == 0
    with pytest.raises(ValueError, match=r"votes: got \[1.0, -0.5\]"):
        vote_confidence([1.0, -0.5])


def plain_magicore(model, n, iterations, min_reward):
    """Section 3 with the code's conditions: scores of steps and of whole answers, products of the former."""

    def process(text):
        ends = [i + 1 for i, char in enumerate(text) if char == "\n"] + [len(text)]
        return [score_of(text[:end]) for end in ends]

    def rewards(text):
        return math.prod(process(text)), draw("outcome", text)

    def easy(texts):
        majority = Counter(map(answer_of, texts)).most_common(1)[0][0]
        of_majority = [sum(rewards(text)) for text in texts if answer_of(text) == majority]
        confidences = []
        for kind in range(2):
            tally = Counter()
            for text in texts:
                tally[answer_of(text)] += rewards(text)[kind]
            confidences.append(2 * (1 - expit(entropy(list(tally.values())))))
        return sum(of_majority) / len(of_majority) >= min_reward or min(confidences) >= 0.5

    texts = [model.ask(QUESTION) for _ in range(n)]
    everything, kept, used = list(texts), list(texts), 0
    for _ in range(iterations):
        if easy(texts):
            break
        used += 1
        annotated = [
            "\n".join(
                f"{step.strip()} [score: {score:.2f}]"
                for step, score in zip(text.split("\n"), process(text), strict=True)
            )
            for text in texts
        ]
        reviews = [model.ask(f"{QUESTION}{solution} review") for solution in annotated]
        texts = [
            model.ask(f"{QUESTION}{solution} {review} refine")
            for solution, review in zip(annotated, reviews, strict=True)
        ]
        everything += texts
        kept = sorted(kept + texts, key=lambda text: -sum(rewards(text)))[:n]
    tally = Counter()
    for text in kept:
        tally[answer_of(text)] += sum(rewards(text))
    winner = tally.most_common(1)[0][0]
    best = max((t for t in kept if answer_of(t) == winner), key=lambda text: sum(rewards(text)))
    return best, everything, used


def test_magicore_refines_hard_questions_alone():
    iterations = Counter()
    for seed in range(24):
        best, everything, used = plain_magicore(Model(seed, kinds=4, steps=3), 5, 2, 0.9)
        result = run_scripted(
            scripted_decoder(Model(seed, kinds=4, steps=3)),
            magicore,
            QUESTION,
            sampling=SamplingParams(stop=("\n",), max_step_tokens=512),
            n=5,
            max_rounds=2,
            scorer=scorer(score_of),
            outcome_scorer=scorer(lambda text: draw("outcome", text)),
            reward_threshold=0.9,
            review_prompt="{question}{solution} review",
            refine_prompt="{question}{solution} {review} refine",
            extract=answer_of,
        )
        assert found(result) == sorted(everything)
        assert result.answer == best
        iterations[used] += 1
    assert set(iterations) == {0, 1, 2}


def test_magicore_votes_with_rewards_below_zero():
    def below(text):
        return -1 - 3 * score_of(text)

    model = Model(1)
    texts = [model.ask(QUESTION) for _ in range(7)]
    tally = Counter()
    for text in texts:
        tally[answer_of(text)] += math.exp(below(text))
    result = run_scripted(
        scripted_decoder(Model(1)),
        magicore,
        QUESTION,
        n=7,
        max_rounds=0,
        scorer=scorer(below),
        agg_strategy="last",
        extract=answer_of,
    )
    assert result.votes == pytest.approx(dict(tally))


# -- stages


def test_feedback_edit_has_a_model_for_each_stage():
    for seed in SEEDS:
        drafter, critic, editor = Model(seed), Model(seed + 100), Model(seed + 200)
        drafts = [drafter.ask(QUESTION) for _ in range(3)]
        edits = []
        for draft in drafts:
            said = [critic.ask(f"{QUESTION}{draft} say") for _ in range(2)]
            edits += [editor.ask(f"{QUESTION}{draft}: {said[0]}\n\n{said[1]} edit") for _ in range(2)]
        decoders = [scripted_decoder(Model(seed + more)) for more in (0, 100, 200)]
        result = run_scripted(
            decoders[0],
            feedback_edit,
            QUESTION,
            n=3,
            num_feedbacks=2,
            num_edits=2,
            scorer=scorer(score_of),
            feedback_decoder=decoders[1],
            edit_decoder=decoders[2],
            feedback_prompt="{question}{answer} say",
            edit_prompt="{question}{answer}: {feedback} edit",
        )
        assert found(result) == sorted(drafts + edits)
        assert result.answer == max(edits, key=score_of)
        assert [len(decoder.complete.calls) for decoder in decoders] == [3, 6, 6]
        assert all(decoder.stats().branches == 0 for decoder in decoders)


class Thinker(Model):
    """Thinks for 1 to 6 words, the end of thinking included, then answers."""

    def __call__(self, prefix, k):
        u = draw(self.seed, prefix, k)
        text, end = f"w{int(1e9 * u)} so {int(1e3 * u) % 3}", "eos"
        if not prefix.endswith(("</think>", "Final: ")):
            text, end = f"t{int(1e9 * u)} " + "hm " * (int(1e6 * u) % 5) + "</think>", "stop_string"
        return text, end, [-3 * draw(u, i) for i in range(len(words(text)))]

    def think(self, prompt, cap):
        """What it says if thinking is cut after `cap` words, and whether that was so."""
        text, _, logprobs = self(prompt, self.asked[prompt])
        self.asked[prompt] += 1
        pieces, cut = words(text), len(words(text)) > cap
        if cut:
            pieces, logprobs = [*pieces[:cap], "</think>Final: "], [*logprobs[:cap], -1.0]
        thought = "".join(pieces)
        said, _, more = self(prompt + thought, self.asked[prompt + thought])
        self.asked[prompt + thought] += 1
        logprobs = [*logprobs, *more, 0.0]
        self.likelihood[thought + said] = sum(logprobs) / len(logprobs)
        return thought + said, cut


@pytest.mark.parametrize("scored", [False, True])
def test_three_d_refines_the_preferred_sample_of_a_turn(scored):
    cuts = set()
    for seed in SEEDS:
        model, prompt, turns = Thinker(seed), QUESTION, []
        for _ in range(3):
            samples = [model.think(prompt, 4) for _ in range(4)]
            cuts |= {cut for _, cut in samples}
            turns.append([text for text, _ in samples])
            best = max(turns[-1], key=score_of) if scored else model.voted(turns[-1])
            prompt = f"{QUESTION}{best.rpartition('</think>')[2].strip()} again"
        result = run_scripted(
            scripted_decoder(Thinker(seed), logprobs_of=lambda prefix, text: [-1.0]),
            three_d,
            QUESTION,
            n=4,
            max_rounds=2,
            max_tokens_thinking=4,
            final_answer="Final: ",
            refine_prompt="{question}{answer} again",
            scorer=scorer(score_of) if scored else None,
            extract=answer_of,
        )
        everything = [text for turn in turns for text in turn]
        assert found(result) == sorted(everything)
        assert result.answer == (max(everything, key=score_of) if scored else model.voted(turns[-1]))
    assert cuts == {False, True}


@pytest.mark.parametrize("scored", [False, True])
def test_t1_drops_what_the_tool_refutes(scored):
    def tool(code):
        assert code.startswith("t </think> w")
        kind = int(1e6 * draw("tool", code)) % 4
        if kind == 0:
            raise RuntimeError("no such name")
        return ["", "False", "True False", "False True"][kind]

    class Coder(Model):
        def __call__(self, prefix, k):
            text, end, logprobs = super().__call__(prefix, k)
            if prefix.endswith("code"):
                text = f"Here:\n```python\n{' '.join(text.split()[:3])}\n```\n"
                logprobs = [-1.0] * len(words(text))
            return text, end, logprobs

    def p_yes(prefix):
        return 0.1 + 0.8 * draw("yes", prefix)

    refuted = Counter()
    for seed in range(12):
        model = Coder(seed)
        texts = [model.ask(QUESTION) for _ in range(5)]
        expected = {}
        for text in texts:
            code = model.ask(f"{QUESTION}{text} code").split("```python\n")[1].removesuffix("```\n")
            passed = int(1e6 * draw("tool", code)) % 4 in (0, 3)
            score = score_of(text) if scored else p_yes(f"{QUESTION}{text} ok?")
            expected[text] = (passed, score)
        result = run_scripted(
            scripted_decoder(
                Coder(seed),
                logprobs_of=lambda prefix, text: [
                    math.log(p_yes(prefix) if text == "Yes" else 1 - p_yes(prefix))
                ],
            ),
            t1_verify,
            QUESTION,
            n=5,
            tool=tool,
            scorer=scorer(score_of) if scored else None,
            code_prompt="{question}{answer} code",
            verify_prompt="{question}{answer} ok?",
        )
        assert result.answer == max(texts, key=expected.get)
        for candidate in result.candidates:
            passed, score = expected[candidate.text]
            assert candidate.score == pytest.approx(score * passed)
        refuted[sum(not passed for passed, _ in expected.values())] += 1
    assert len(refuted) > 2


def test_t1_without_a_tool_asks_for_no_code():
    decoder = scripted_decoder(Model(3))
    result = run_scripted(decoder, t1_verify, QUESTION, n=4, scorer=scorer(score_of))
    assert set(prompts(decoder)) == {QUESTION}
    assert result.answer == max(found(result), key=score_of)


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (multi_round, {"max_rounds": -1}, "max_rounds: got -1"),
        (sets, {"max_rounds": -1}, "max_rounds: got -1"),
        (revise, {"threshold": 1.5}, r"threshold: got 1\.5, expected a finite number, 0 <= threshold <= 1"),
        (iterative_agent_decoding, {"max_rounds": -1, "scorer": scorer(score_of)}, "max_rounds: got -1"),
        (magicore, {"agg_strategy": "mode", "scorer": scorer(score_of)}, "agg_strategy: got 'mode'"),
        (tpo, {"max_rounds": -1, "scorer": scorer(score_of)}, "max_rounds: got -1"),
        (heart, {"negative": []}, "negative: got nothing, expected at least one phrase"),
        (feedback_edit, {"num_edits": 0, "scorer": scorer(score_of)}, "num_edits: got 0"),
        (three_d, {"max_rounds": -1}, "max_rounds: got -1"),
    ],
)
def test_bad_options_are_named_before_anything_is_asked(strategy, options, message):
    decoder = scripted_decoder(Model(0))
    with pytest.raises(ValueError, match=message):
        run_scripted(decoder, strategy, QUESTION, **options)
    assert decoder.complete.calls == []


# -- on a model


def tiny(max_tokens=24):
    sampling = SamplingParams(max_tokens=max_tokens, max_step_tokens=max_tokens, seed=5)
    return TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=64 << 20, sampling=sampling)


async def search(decoder, strategy, **options):
    root = await decoder.root("What is 2 + 3?")
    result = await strategy(SearchRun(root), **options)
    root.release()
    return result


def test_prompts_of_a_line_compute_what_they_share_once():
    """Of each prompt only what the root and the prompt before have not is computed."""
    decoder = tiny()
    prompts = {"verify_prompt": "{history}\nCheck!", "refine_prompt": "{history}\nAgain!"}
    result = decoder.run(search(decoder, sets, n=1, max_rounds=3, **prompts))
    asked = [node.tokens for node in result.tree if node.status == "prompt"]
    assert len(asked) == 7

    def shared(one, other):
        return next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )

    computed = sum(len(prompt) for prompt in asked)
    found = sum(max(shared(asked[i], asked[j]) for j in {0, i - 1}) for i in range(1, len(asked)))
    sampled = sum(len(node.tokens) - 1 for node in result.tree if node.status != "prompt")
    assert decoder.stats().forward_tokens == computed - found + sampled
    assert found > computed / 2


def test_later_answers_are_scored_as_answers_to_the_question():
    """Whatever prompt they were sampled from: it is what a reward model reads before the answer."""
    asked, roots = Counter(), set()

    async def judge(branches):
        asked.update(branch.question for branch in branches)
        roots.update(branch.full_text[: -len(branch.text)] for branch in branches)
        return [score_of(branch.text) for branch in branches]

    for strategy in (feedback_edit, heart, iterative_agent_decoding, magicore, multi_round, three_d, tpo):
        asked.clear()
        roots.clear()
        hard = (
            {"reward_threshold": 3.0, "confidence_threshold": 2.0, "max_rounds": 1}
            if strategy is magicore
            else {}
        )
        run_scripted(scripted_decoder(Model(2)), strategy, QUESTION, n=3, scorer=judge, **hard)
        assert set(asked) == {QUESTION}
        assert len(roots - {QUESTION}) >= 1


def test_lines_end_where_the_next_prompt_would_be_too_long():
    """Those that vote still vote; all say why lines ended."""
    decoder = tiny()
    voted = decoder.run(
        search(
            decoder,
            multi_round,
            n=4,
            max_rounds=2,
            refine_prompt="{question}{answer}" + "x" * 520,
            extract=length_mod_3,
        )
    )
    assert len(voted.candidates) == 4
    assert "but the model allows 512" in voted.stopped
    assert sum(voted.votes.values()) == 4
    scored = decoder.run(
        search(
            decoder,
            iterative_agent_decoding,
            n=4,
            scorer=scorer(score_of),
            refine_prompt="{best}" + "x" * 600,
        )
    )
    assert scored.answer == max(found(scored), key=score_of)
    assert "but the model allows 512" in scored.stopped
    assert decoder.stats().branches == decoder.stats().resident_bytes == 0
