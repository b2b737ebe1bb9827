"""Strategies that spend more or less on one line: against plain transcriptions, and what KV they reuse."""

import math
import random
import zlib
from collections import Counter

import pytest
from scripted import run_scripted, scorer, scripted_decoder, words
from search_options import length_mod_3
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.search import (
    budget_forcing,
    entropy_forking,
    hint_infer,
    iterative_deepening,
    rollout_share,
    shifted_window,
)
from tts_decode.search.thinking.hint_infer import conjunction_positions
from tts_decode.select import fork_points, vote

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY = ["so ", "two ", "and ", "But ", "wait, ", "four ", "hmm ", "then "]
SEEDS = range(12)


def wild(seed, ends=("eos",), longest=9):
    """A script of random words; a "stop_string" ends with the text that ends the thinking."""

    def script(prefix, k):
        rng = random.Random(zlib.crc32(f"{seed} {prefix} {k}".encode()))
        chosen = [rng.choice(VOCABULARY) for _ in range(rng.randint(1, longest))]
        reason = rng.choice(ends)
        if reason == "stop_string":
            chosen.append("</think>")
        count = len(chosen) + (reason == "eos")
        return (
            "".join(chosen),
            reason,
            [-1.0] * len(chosen),
            [rng.random() for _ in range(count)][: len(chosen)],
        )

    return script


class Plain:
    """The same script, called without an engine: at most `limit` words, of which an end is one."""

    def __init__(self, script):
        self.script = script
        self.asked = Counter()

    def __call__(self, prefix, limit):
        text, reason, _, entropies = self.script(prefix, self.asked[prefix])
        self.asked[prefix] += 1
        tokens = words(text) + [""] * (reason == "eos")
        if len(tokens) > limit:
            tokens, reason = tokens[:limit], "length"
        self.entropies = [*entropies, 0.0][: len(tokens)]
        return tokens, reason


def texts(result):
    return sorted(candidate.text for candidate in result.candidates)


def majority(answers, extract=length_mod_3):
    return next(iter(vote([extract(answer) for answer in answers])))


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
        result = run_scripted(
            scripted_decoder(script),
            budget_forcing,
            "Q: ",
            sampling=SamplingParams(max_tokens=40),
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
        assert scored.votes is None
        assert texts(scored) == texts(voted)
        assert scored.answer == max(texts(scored), key=score)


def tiny(max_tokens):
    sampling = SamplingParams(max_tokens=max_tokens, seed=3)
    return TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=64 << 20, sampling=sampling)


async def search(decoder, strategy, **options):
    root = await decoder.root("What is 2 + 3?")
    result = await strategy(root, **options)
    root.release()
    return result


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
        result = run_scripted(
            scripted_decoder(script),
            shifted_window,
            "Q: ",
            sampling=SamplingParams(max_tokens=12),
            max_tokens_thinking=5,
            final_answer="Enough. ",
        )
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
        result = run_scripted(
            scripted_decoder(script),
            iterative_deepening,
            "Q: ",
            sampling=SamplingParams(max_tokens=40),
            first_budget=5,
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


# -- hint-infer


def plain_hint_infer(model, prompt, hints, num_hints, num_forks, total, tool=None):
    """The last answers: of the line with a hint at each end, and of its forks at uncertain conjunctions."""

    def generate(tokens):
        if len(tokens) < total:
            new, reason = model(prompt + "".join(tokens), total - len(tokens))
            tokens += new
            return reason
        return "length"

    def go_on(tokens, hint):
        tokens.append(hint)
        return generate(tokens)

    line = []
    reason = generate(line)
    entropies, first = list(model.entropies), list(line)
    places = [i for i, word in enumerate(first) if word.strip(" ,").lower() in ("but", "wait", "hmm")]
    places.sort(key=lambda i: -entropies[i])
    answers, earlier = [], []
    for i in range(num_hints):
        if reason != "eos":
            break
        earlier.append("".join(line))
        line.pop()
        reason = go_on(line, hints[i % len(hints)])
    for i, at in enumerate(places[:num_forks]):
        fork = first[:at]
        go_on(fork, hints[i % len(hints)])
        answers.append("".join(fork))
    return [*answers, "".join(line)], earlier


@pytest.mark.parametrize(("num_hints", "num_forks"), [(0, 0), (3, 0), (0, 2), (2, 2)])
def test_hint_infer_hints_at_ends_and_at_uncertain_conjunctions(num_hints, num_forks):
    hints = ["Check it: ", "Otherwise: "]
    forked = 0
    for seed in SEEDS:
        script = wild(seed)
        result = run_scripted(
            scripted_decoder(script),
            hint_infer,
            "Q: ",
            sampling=SamplingParams(max_tokens=30),
            num_hints=num_hints,
            num_forks=num_forks,
            hints=hints,
            extract=length_mod_3,
        )
        last, earlier = plain_hint_infer(Plain(script), "Q: ", hints, num_hints, num_forks, 30)
        assert texts(result) == sorted(last + earlier)
        ended = [c.text for c in result.candidates if c.complete and c.text in last]
        assert length_mod_3(result.answer) in {length_mod_3(text) for text in ended}
        forked += len(last) > 1
    assert forked or not num_forks


def test_conjunctions_are_found_in_the_tokens_of_a_model():
    """Also behind characters of several tokens, and only as words of their own."""
    decoder = tiny(max_tokens=8)
    text = "é But so. Wait, however: waiting \u2014 but \u4f60\u597d alternatively"

    async def positions():
        root = await decoder.root("But ")
        branch = root.fork()[0]
        begin = branch.length
        await branch.extend(text)
        found = conjunction_positions(branch, begin, ["but", "wait", "alternatively"])
        texts = [branch.text_from(at) for at in found]
        root.release()
        branch.release()
        return texts

    starts = [text.index(word) for word in ("But", "Wait", "but", "alternatively")]
    assert decoder.run(positions()) == [text[start:] for start in starts]


def test_hint_infer_runs_the_tool_on_what_follows_the_hint():
    def script(prefix, k):
        if prefix.endswith("output\n[6 * 7 ]\n```\n"):
            return "It is 42.", "eos"
        return ("6 * 7 ```", "stop_string") if prefix.endswith("python ") else ("Maybe 40.", "eos")

    asked = []

    def tool(code):
        asked.append(code)
        if len(asked) > 1:
            raise ZeroDivisionError("by zero")
        return f"[{code}]"

    decoder = scripted_decoder(script)
    result = run_scripted(decoder, hint_infer, "Q: ", num_hints=2, hints=["Try python "], tool=tool)
    assert asked == ["6 * 7 "] * 2
    assert result.candidates[1].text == "Maybe 40.Try python 6 * 7 ```\n```output\n[6 * 7 ]\n```\nIt is 42."
    assert "ZeroDivisionError: by zero" in result.answer
    assert [call.request.stop for call in decoder.complete.calls][1] == ("```",)


# -- entropy forking


def plain_entropy_forking(model, prompt, n, num_forks, num_branches, total):
    """ETMR: all first answers, then forks at the tokens of highest entropy; each fork draws them anew."""
    answers, trees = [], []
    for _ in range(n):
        tokens, _ = model(prompt, total)
        answers.append("".join(tokens))
        trees.append((tokens, model.entropies))
    for tokens, entropies in trees:
        for at in sorted(range(len(tokens)), key=lambda i: -entropies[i])[:num_forks]:
            for _ in range(num_branches):
                new = model(prompt + "".join(tokens[:at]), total - at)[0]
                answers.append("".join(tokens[:at] + new))
    return answers


def test_entropy_forking_forks_where_entropy_was_highest():
    for seed in SEEDS:
        script = wild(seed)
        result = run_scripted(
            scripted_decoder(script),
            entropy_forking,
            "Q: ",
            sampling=SamplingParams(max_tokens=30),
            n=3,
            extract=length_mod_3,
        )
        expected = plain_entropy_forking(Plain(script), "Q: ", 3, 2, 2, 30)
        assert len(expected) == 3 * (1 + 2 * 2)
        assert texts(result) == sorted(expected)
        assert length_mod_3(result.answer) == majority([c.text for c in result.candidates])
        sampled = sum(len(node.tokens) for node in result.tree[1:])
        assert rollout_share(result) == sampled / sum(len(c.tokens) for c in result.candidates) < 1


def test_forks_at_past_tokens_share_pages():
    """No token is prefilled again but the one before each fork, and pages are held once."""
    decoder = tiny(max_tokens=160)
    before = decoder.stats().forward_tokens
    result = decoder.run(search(decoder, entropy_forking, n=2, num_forks=2, num_branches=3))
    forks = [node for node in result.tree if node.at is not None]
    assert len(forks) == 2 * 2 * 3
    forwarded = decoder.stats().forward_tokens - before
    fed = len(result.tree[0].tokens) + result.stats.generated_tokens - len(result.candidates)
    assert forwarded == fed + len(forks)
    pages = result.stats.peak_bytes // decoder.stats().page_bytes
    held = sum(len(node.tokens) for node in result.tree)
    assert pages <= held // 16 + 2 * len(result.candidates)  # each branch may have two partly shared pages
    assert rollout_share(result) < 1
    assert decoder.stats().resident_bytes == 0


def test_an_engine_without_entropies_gives_no_forks():
    def script(prefix, k):
        return "a b c", "length", [-1.0] * 3, [math.nan] * 3

    result = run_scripted(
        scripted_decoder(script), entropy_forking, "Q", sampling=SamplingParams(max_tokens=3), n=2
    )
    assert len(result.candidates) == 2


def test_fork_points_are_the_highest_entropies():
    rng = random.Random(1)
    for _ in range(200):
        entropies = [rng.choice([0.0, 0.5, 1.0, rng.random(), math.nan]) for _ in range(rng.randint(0, 9))]
        k = rng.randint(0, 5)
        points = fork_points(entropies, k)
        known = [i for i, e in enumerate(entropies) if not math.isnan(e)]
        assert len(points) == min(k, len(known)) == len(set(points))
        left = [i for i in known if i not in points]
        assert all((-entropies[p], p) < (-entropies[q], q) for p in points for q in left)
        assert points == sorted(points, key=lambda i: (-entropies[i], i))
    with pytest.raises(ValueError, match="k: got -1"):
        fork_points([1.0], -1)
