"""Lines of answers that are written again: multi-round, SETS and ReVISE, and refinement on a model."""

import math
from collections import Counter

import pytest
from plain_scripts import answer_of, draw
from refining_model import QUESTION, SEEDS, Model, found, refined, score_of
from scripted import run_scripted, scorer, scripted_decoder
from search_options import length_mod_3
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder, search

pytestmark = pytest.mark.usefixtures("one_thread")

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
    result = refined(
        Model(seed),
        search.multi_round,
        n=5,
        max_rounds=2,
        refine_prompt="{question}<{answer}> again",
        scorer=scorer(score_of) if scored else None,
        extract=answer_of,
    )
    assert found(result) == sorted(all_of_them)
    assert result.answer == (max(all_of_them, key=score_of) if scored else model.voted(last))


CHECKS = {"verify_prompt": "{history}check", "refine_prompt": "{history}again"}


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
        result = refined(Model(seed), search.sets, n=5, max_rounds=2, extract=answer_of, **CHECKS)
        assert len(result.candidates) == 5 + corrections
        assert set(last) <= set(found(result))
        assert result.answer == model.voted(last)
        assert result.votes == Counter(map(answer_of, last))
        made.add(corrections)
    assert len(made) > 2


def test_sets_takes_a_check_without_a_verdict_as_wrong():
    def script(prefix, k):
        return ("I cannot tell." if prefix.endswith("check") else f"say {len(prefix)}"), "eos"

    result = run_scripted(scripted_decoder(script), search.sets, QUESTION, n=1, max_rounds=3, **CHECKS)
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
            search.revise,
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


# -- options


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (search.multi_round, {"max_rounds": -1}, "max_rounds: got -1"),
        (search.sets, {"max_rounds": -1}, "max_rounds: got -1"),
        (search.revise, {"threshold": 1.5}, r"threshold: got 1\.5"),
        (
            search.iterative_agent_decoding,
            {"max_rounds": -1, "scorer": scorer(score_of)},
            "max_rounds: got -1",
        ),
        (search.magicore, {"agg_strategy": "mode", "scorer": scorer(score_of)}, "agg_strategy: got 'mode'"),
        (search.tpo, {"max_rounds": -1, "scorer": scorer(score_of)}, "max_rounds: got -1"),
        (search.heart, {"negative": []}, "negative: got nothing, expected at least one phrase"),
        (search.feedback_edit, {"num_edits": 0, "scorer": scorer(score_of)}, "num_edits: got 0"),
        (search.three_d, {"max_rounds": -1}, "max_rounds: got -1"),
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


async def searched(decoder, strategy, **options):
    root = await decoder.root("What is 2 + 3?")
    result = await strategy(search.SearchRun(root), **options)
    root.release()
    return result


def test_prompts_of_a_line_compute_what_they_share_once():
    """Each prompt computes only the tokens that neither the root nor the previous prompt has."""
    decoder = tiny()
    prompts = {"verify_prompt": "{history}\nCheck!", "refine_prompt": "{history}\nAgain!"}
    result = decoder.run(searched(decoder, search.sets, n=1, max_rounds=3, **prompts))
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

    scored = (search.feedback_edit, search.heart, search.iterative_agent_decoding, search.magicore)
    for strategy in (*scored, search.multi_round, search.three_d, search.tpo):
        asked.clear()
        roots.clear()
        hard = (
            {"reward_threshold": 3.0, "confidence_threshold": 2.0, "max_rounds": 1}
            if strategy is search.magicore
            else {}
        )
        refined(Model(2), strategy, n=3, scorer=judge, **hard)
        assert set(asked) == {QUESTION}
        assert len(roots - {QUESTION}) >= 1


def test_lines_end_where_the_next_prompt_would_be_too_long():
    """Voting strategies still vote; all say why lines ended."""
    decoder = tiny()
    voted = decoder.run(
        searched(
            decoder,
            search.multi_round,
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
        searched(
            decoder,
            search.iterative_agent_decoding,
            n=4,
            scorer=scorer(score_of),
            refine_prompt="{best}" + "x" * 600,
        )
    )
    assert scored.answer == max(found(scored), key=score_of)
    assert "but the model allows 512" in scored.stopped
    assert decoder.stats().branches == decoder.stats().resident_bytes == 0
