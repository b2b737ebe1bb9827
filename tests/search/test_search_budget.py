"""Thinking time of one line: budget forcing, shifted windows, iterative deepening, and the KV they reuse."""

import math
import zlib

import pytest
from scripted import run_scripted, scorer, scripted_decoder
from search_options import length_mod_3
from thinking_scripts import SEEDS, Plain, majority, search, texts, think, tiny, wild
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.search import budget_forcing, iterative_deepening, shifted_window

pytestmark = pytest.mark.usefixtures("one_thread")

# -- budget forcing


def plain_budget_forcing(model, prompt, num_ignore, cap, total):
    """s1, section 3.1, as text: cut the end of thinking, append "Wait"; at the cap force the answer."""
    tokens, reason = [], ""
    for ignored in range(num_ignore + 1):
        if len(tokens) >= cap:
            reason = "length"
            break
        new, reason = model(prompt + "".join(tokens), cap - len(tokens))
        tokens += new
        if reason == "length" or ignored == num_ignore:
            break
        tokens[-1:] = ["Wait "]
    if reason == "eos":
        return "".join(tokens)
    if reason == "length":
        tokens.append("</think> Answer: ")
    there = len(tokens)
    while reason != "eos" and len(tokens) < there + total:
        new, reason = model(prompt + "".join(tokens), there + total - len(tokens))
        tokens += new
    return "".join(tokens)


@pytest.mark.parametrize("num_ignore", [0, 1, 3])
def test_budget_forcing_does_what_the_paper_says(num_ignore):
    cut = 0
    for seed in SEEDS:
        script = wild(seed, ("eos", "stop_string"))
        result = think(
            script,
            budget_forcing,
            40,
            n=1,
            num_ignore=num_ignore,
            max_tokens_thinking=14,
            rethink="Wait ",
            final_answer=" Answer: ",
        )
        assert result.answer == plain_budget_forcing(Plain(script), "Q: ", num_ignore, 14, 40)
        assert result.answer.count("Wait ") <= num_ignore
        cut += "Answer: " in result.answer
    assert cut or num_ignore == 0  # both ways out were taken


def test_lines_vote_or_are_scored():
    def score(text):
        return zlib.crc32(text.encode()) % 1000 / 1000

    options = {"n": 5, "num_ignore": 1, "max_tokens_thinking": 10, "end_of_thinking": ""}
    sampling = SamplingParams(max_tokens=20)
    for seed in SEEDS:
        voted = run_scripted(
            scripted_decoder(wild(seed)),
            budget_forcing,
            "Q",
            sampling=sampling,
            extract=length_mod_3,
            **options,
        )
        assert length_mod_3(voted.answer) == majority([c.text for c in voted.candidates])
        scored = run_scripted(
            scripted_decoder(wild(seed)),
            budget_forcing,
            "Q",
            sampling=sampling,
            scorer=scorer(score),
            **options,
        )
        assert sum(scored.votes.values()) == len(texts(scored))
        assert texts(scored) == texts(voted)
        assert scored.answer == max(texts(scored), key=score)


def test_budget_forcing_prefills_nothing_twice():
    """Each token goes through the model once; once more only the one before each dropped end."""
    decoder = tiny(max_tokens=96)
    line = decoder.run(search(decoder, budget_forcing, num_ignore=0, max_tokens_thinking=40)).answer
    end = next(char for char in line[4:30] if char.isascii() and char.isalnum())
    before = decoder.stats().forward_tokens
    result = decoder.run(
        search(
            decoder, budget_forcing, num_ignore=3, max_tokens_thinking=40, end_of_thinking=end, rethink="hm"
        )
    )
    waits = [node for node in result.tree if node.forced and node.text == "hm"]
    assert waits
    assert all(result.tree[node.parent].text.endswith(end) for node in waits if node.at is not None)
    forwarded = decoder.stats().forward_tokens - before
    assert forwarded == len(result.tree[0].tokens) + len(result.best.tokens) - 1 + len(waits)


def test_text_is_not_forced_beyond_the_last_position():
    """A cap just before the model's last position: the line ends there, without a forced answer."""
    model = tiny_model()
    model.config.max_position_embeddings = len("What is 2 + 3?") + 20
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=64 << 20, sampling=SamplingParams(seed=3))
    result = decoder.run(search(decoder, budget_forcing, n=3, num_ignore=0, max_tokens_thinking=15))
    cut = [c for c in result.candidates if c.finish_reason == "max_tokens"]
    assert cut
    assert all(len(c.tokens) == 15 for c in cut)
    assert not any(node.forced for node in result.tree)
    result = decoder.run(
        search(
            decoder,
            budget_forcing,
            num_ignore=0,
            max_tokens_thinking=15,
            end_of_thinking="",
            final_answer="5",
        )
    )
    assert result.tree[-1].forced or result.tree[-2].forced
    assert result.best.finish_reason in ("eos", "length")


# -- shifted thinking window


def test_shifted_window_forces_an_answer_only_where_the_window_is_full():
    kinds = set()
    for seed in SEEDS:
        script = wild(seed)
        result = think(script, shifted_window, 12, max_tokens_thinking=5, final_answer="Enough. ")
        model = Plain(script)
        thought, reason = model("Q: ", 5)
        expected = "".join(thought)
        if reason == "length":
            expected += "Enough. "
            expected += "".join(model("Q: " + expected, 12)[0])
        assert result.answer == expected
        kinds.add(reason)
    assert kinds == {"eos", "length"}


# -- iterative deepening


def plain_iterative_deepening(model, prompt, first, gamma, total):
    """Every stage's answer, the last one last."""
    answers, tokens, budget = [], [], first
    while True:
        cap = min(math.ceil(budget), total)
        new, reason = model(prompt + "".join(tokens), cap - len(tokens)) if len(tokens) < cap else ([], "")
        tokens += new
        if cap == total:
            return [*answers, "".join(tokens)]
        if reason == "eos":
            answers.append("".join(tokens))
            tokens.pop()
        tokens.append("Look again. ")
        while budget <= max(cap, len(tokens)):
            budget *= gamma


@pytest.mark.parametrize("gamma", [1.3, 2.0])
def test_iterative_deepening_triggers_at_growing_budgets(gamma):
    stages = []
    for seed in SEEDS:
        script = wild(seed, longest=20)
        result = think(
            script,
            iterative_deepening,
            40,
            max_tokens_first=5,
            gamma=gamma,
            rethink="Look again. ",
            extract=length_mod_3,
        )
        expected = plain_iterative_deepening(Plain(script), "Q: ", 5, gamma, 40)
        assert [candidate.text for candidate in result.candidates] == expected
        stages.append(len(expected))
        winner = majority([c.text for c in result.candidates if c.complete][::-1])
        assert length_mod_3(result.answer) == winner
    assert max(stages) > 2


def test_gamma_must_grow():
    with pytest.raises(ValueError, match=r"gamma: got 1\.0, expected a finite number > 1"):
        run_scripted(scripted_decoder(wild(0)), iterative_deepening, "Q", gamma=1.0)
