"""Searches of step strategies on the script of steps."""

from plain_scripts import step_sampling
from scripted import run_scripted, scripted_decoder

SAMPLING = step_sampling(11)
SEEDS = range(6)


def found(candidates):
    """Candidates as a sorted list of (text, score); the order in which they ended is the engine's."""
    return sorted((c.text, c.score) for c in candidates)


def search(strategy, script, **options):
    decoder = scripted_decoder(script)
    return decoder, run_scripted(decoder, strategy, "Q: ", sampling=SAMPLING, **options)
