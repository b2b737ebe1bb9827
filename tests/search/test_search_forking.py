"""Lines that fork where they were uncertain: Hint-Infer and entropy forking, and what KV the forks reuse."""

import math
import random

import pytest
from scripted import run_scripted, scripted_decoder
from search_options import length_mod_3
from thinking_scripts import SEEDS, Plain, majority, search, texts, think, tiny, wild
from tts_decode.search import entropy_forking, hint_infer, rollout_share
from tts_decode.search.thinking.hint_infer import conjunction_positions
from tts_decode.select import fork_points

pytestmark = pytest.mark.usefixtures("one_thread")

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
        result = think(
            script,
            hint_infer,
            30,
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
        result = think(script, entropy_forking, 30, n=3, extract=length_mod_3)
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

    result = think(script, entropy_forking, 3, n=2)
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
