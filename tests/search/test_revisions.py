"""Sequential revisions against a plain transcription: what prompts show, and the choice in two stages."""

from collections import defaultdict

import pytest
from plain_scripts import answer_of
from refining_model import QUESTION, SEEDS, Model, found, refined, score_of
from scripted import run_scripted, scorer, scripted_decoder
from tts_decode.search import revisions

PROMPT = "{question}<{attempts}> refine"


def chosen(texts):
    """The best-scored text of the answer with the largest sum of scores."""
    sums = defaultdict(float)
    for text in texts:
        sums[answer_of(text)] += score_of(text)
    answer = max(sums, key=sums.get)
    return max((text for text in texts if answer_of(text) == answer), key=score_of), dict(sums)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("num_sequential", "max_attempts"), [(1, 4), (3, 1), (6, 2), (6, 9)])
def test_chains_and_choice(seed, num_sequential, max_attempts):
    model, chains = Model(seed), []
    for _ in range(6 // num_sequential):
        chain = [model.ask(QUESTION)]
        while len(chain) < num_sequential:
            shown = "".join(f"{i}. {text}\n" for i, text in enumerate(chain[-max_attempts:], 1))
            chain.append(model.ask(f"{QUESTION}<{shown}> refine"))
        chains.append(chain)
    best, votes = chosen([chosen(chain)[0] for chain in chains])
    result = refined(
        Model(seed),
        revisions,
        n=6,
        num_sequential=num_sequential,
        max_attempts=max_attempts,
        refine_prompt=PROMPT,
        scorer=scorer(score_of),
        extract=answer_of,
    )
    assert found(result) == sorted(text for chain in chains for text in chain)
    assert result.answer == best
    assert result.votes == pytest.approx(votes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 4, "num_sequential": 3}, "num_sequential: got 3, expected a divisor of n = 4"),
        ({"max_attempts": 0}, "max_attempts: got 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        run_scripted(scripted_decoder(Model(0)), revisions, QUESTION, scorer=scorer(score_of), **options)
