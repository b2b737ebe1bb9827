"""Searches of step strategies on the script of steps."""

import math
import statistics

from plain_scripts import asked, step_sampling
from scripted import run_scripted, scripted_decoder

SAMPLING = step_sampling(11)
SEEDS = range(6)
FOLDS = {"last": lambda s: s[-1], "min": min, "mean": statistics.fmean, "prod": math.prod}  # agg_strategy


def found(candidates):
    """Candidates as a sorted list of (text, score); the order in which they ended is the engine's."""
    return sorted((c.text, c.score) for c in candidates)


def search(strategy, script, *, seed=11, latency=None, budget=None, **options):
    """The decoder, and the result of a strategy on the script."""
    decoder = scripted_decoder(script, latency=latency)
    sampling = step_sampling(seed)
    return decoder, run_scripted(decoder, strategy, "Q: ", sampling=sampling, budget=budget, **options)


def check_same(decoder, result, model, answers):
    """answers: (text, score, whether it ended) each; the search asked what the model was asked."""
    assert found(result.candidates) == sorted(answer[:2] for answer in answers)
    best = max(answers, key=lambda answer: (answer[2], answer[1]))
    assert (result.answer, result.best.score) == best[:2]
    assert asked(decoder) == model.asked
