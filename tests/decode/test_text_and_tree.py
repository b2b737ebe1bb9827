"""The same model behind a completion call and on the tree: branches of both tell the same."""

import random
from collections import Counter

import pytest
import torch
from scripted import run_scripted
from text_cases import PROMPT, grade
from tiny_models import EOS, tiny_model
from tts_decode import Budget, SamplingParams, TreeDecoder
from tts_decode.completions.completion import Completion
from tts_decode.completions.decoder import TextDecoder
from tts_decode.rewards import verifier
from tts_decode.search import beam_search, best_of_n, rebase, self_consistency

pytestmark = pytest.mark.usefixtures("one_thread")


class CharTokenizer:
    """Token i is character i, so that texts and tokens tell the same."""

    def __call__(self, text, **options):
        return {"input_ids": [ord(char) for char in text]}

    def decode(self, tokens, skip_special_tokens=False):
        return "".join(chr(t) for t in tokens if not (skip_special_tokens and t == EOS))


@pytest.fixture(scope="module")
def tree():
    return TreeDecoder(tiny_model(), CharTokenizer(), kv_bytes=16 << 20)


@pytest.fixture
def over_tree(tree, monkeypatch):
    """A text decoder whose engine is the tree. Its requests carry the branch's own seed: the tree draws by
    seed and position, so it then continues a text with the very tokens of a branch that holds it."""
    monkeypatch.setattr("tts_decode.completions.branch._call_seed", lambda seed, position: seed)

    async def complete(request):
        told = {
            name: getattr(request, name) for name in ("temperature", "top_k", "seed", "max_tokens", "stop")
        }
        sampling = SamplingParams(**told, max_step_tokens=request.max_tokens)
        root = await tree.root(request.prompt, sampling)
        step = await root.step()
        root.release()
        reason = "length" if step.reason == "max_tokens" else step.reason
        texts = [tree.tokenizer.decode([token], skip_special_tokens=True) for token in step.tokens]
        return Completion(step.text, reason, step.tokens, step.logprobs, step.entropies, texts)

    async def score(prompt, continuations):
        root = await tree.root(prompt)
        rows = []
        for text in continuations:
            (child,) = root.fork()
            rows.append((await child.extend(text)).tolist())
            child.release()
        root.release()
        return rows

    return TextDecoder(complete, score=score)


# At this temperature the random model ends one text in a few, within the limit of tokens.
SAMPLING = SamplingParams(temperature=1.5, max_tokens=40, max_step_tokens=8, stop=("e", "st"), seed=3)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (best_of_n, {"agg_strategy": "mean"}),
        (self_consistency, {"scorer": None}),
        (beam_search, {"beam_width": 3}),
        (rebase, {}),
    ],
)
@pytest.mark.parametrize("max_tokens", [None, 100])
def test_a_search_finds_what_it_finds_on_the_tree(tree, over_tree, strategy, options, max_tokens):
    def run(decoder):
        budget = None if max_tokens is None else Budget(max_tokens=max_tokens)
        result = run_scripted(
            decoder,
            strategy,
            PROMPT,
            sampling=SAMPLING,
            budget=budget,
            **{"n": 6, "scorer": verifier(grade)} | options,
        )
        assert budget is None or budget.tokens_used == result.stats.generated_tokens <= max_tokens
        return result

    expected, result = run(tree), run(over_tree)
    if max_tokens is None:
        assert Counter(map(_essence, result.candidates)) == Counter(map(_essence, expected.candidates))
        assert result.answer == expected.answer
        assert result.votes == expected.votes
        assert len(result.tree) == len(expected.tree)
    else:  # the tree spends a budget token by token over all branches, calls one after the other
        assert {c.finish_reason for c in result.candidates} & {"budget", None}


def _essence(candidate):
    score = None if candidate.score is None else round(candidate.score, 6)
    return candidate.text, candidate.tokens, candidate.finish_reason, score, round(candidate.logprob, 2)


@pytest.mark.parametrize("seed", range(3))
def test_random_operations_leave_what_they_leave_on_a_tree_branch(tree, over_tree, seed):
    """The same random calls on both; the tree's prompt has one token a character, the text's has one."""
    rng = random.Random(seed)
    shift = len(PROMPT) - 1

    def compare(text, branch):
        assert text.length + shift == branch.length
        assert text.tokens[1:] == [
            token if known != -1 else -1
            for known, token in zip(text.tokens[1:], branch.tokens[branch.prompt_length :], strict=True)
        ]
        assert (text.text, text.seed, text.scores) == (branch.text, branch.seed, branch.scores)
        assert text.finish_reason == branch.finish_reason
        assert [(s.text, s.tokens, s.reason) for s in text.steps] == [
            (s.text, s.tokens, s.reason) for s in branch.steps
        ]
        torch.testing.assert_close(text.logprobs, branch.logprobs, rtol=1e-4, atol=1e-4)
        assert text.cum_logprob == pytest.approx(branch.cum_logprob, abs=1e-3)

    def cuts(text):
        """Positions at which a text branch can be cut; not right behind an end token, which text cannot hold
        before what follows."""
        return [i + 1 for i, end in enumerate(text._ends) if end is not None and text.tokens[i] != EOS]

    async def walk():
        pairs = [(await over_tree.root(PROMPT, SAMPLING), await tree.root(PROMPT, SAMPLING))]
        for _ in range(30):
            text, branch = rng.choice(pairs)
            action = rng.choice(["step", "step", "step", "fork", "truncate", "extend", "score", "peek"])
            if action == "step":
                options = {"max_step_tokens": rng.randint(1, 9)} if rng.random() < 0.3 else {}
                one, other = await text.step(**options), await branch.step(**options)
                assert (one.text, one.tokens, one.reason) == (other.text, other.tokens, other.reason)
            elif action == "fork" and len(pairs) < 8:
                at = rng.choice([None, *cuts(text)])
                n = rng.randint(1, 2)
                pairs += zip(
                    text.fork(n, at), branch.fork(n, None if at is None else at + shift), strict=True
                )
            elif action == "truncate":
                length = rng.choice(cuts(text))
                text.truncate(length)
                branch.truncate(length + shift)
            elif action in ("extend", "peek") and text.finish_reason != "eos":
                forced = "".join(rng.choices("abc so", k=rng.randint(1, 5)))
                if action == "extend":
                    one, other = await text.extend(forced), await branch.extend(forced)
                else:
                    one, other = await text.logprobs_of(forced), await branch.logprobs_of(forced)
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
            elif action == "score":
                for scored in (text, branch):
                    scored.scores.append(float(len(scored.steps)))
            compare(text, branch)
        assert len({text.id for text, _ in pairs}) == len(pairs) == over_tree.stats().branches
        for text, branch in pairs:
            text.release()
            branch.release()

    tree.run(walk())
    assert over_tree.stats().branches == 0
