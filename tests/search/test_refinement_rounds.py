"""Rounds of refinement that a scorer leads: IAD, TPO and HEART, each against a plain transcription."""

import pytest
from plain_scripts import answer_of
from refining_model import QUESTION, SEEDS, Model, found, refined, score_of
from scripted import scorer
from tts_decode.search import heart, iterative_agent_decoding, tpo

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("n", [1, 3])
def test_iad_shows_the_best_and_the_worst_so_far(n):
    for seed in SEEDS:
        model = Model(seed)
        texts = [model.ask(QUESTION) for _ in range(n)]
        for _ in range(2):
            best, worst = max(texts, key=score_of), min(texts, key=score_of)
            prompt = f"{QUESTION}+{score_of(best):.3f} {best}-{score_of(worst):.3f} {worst}"
            texts += [model.ask(prompt) for _ in range(n)]
        result = refined(
            Model(seed),
            iterative_agent_decoding,
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
        result = refined(
            Model(seed),
            tpo,
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
        result = refined(
            Model(seed), heart, n=3, max_rounds=5, scorer=scorer(score_of), threshold=0.7, **HEART
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
        result = refined(Model(seed), heart, n=2, max_rounds=3, **HEART)
        assert result.answer == model.ask(f"{QUESTION}{shown} all")
        assert found(result) == sorted([*texts, result.answer])
