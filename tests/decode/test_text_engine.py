"""Text branches: the same as tree branches where a completion call can give that, clear errors where not."""

import asyncio
import math
import random
import zlib
from collections import Counter

import pytest
import torch
from scripted import (
    NEEDS_A_MODEL,
    counted,
    random_script,
    run_scripted,
    scorer,
    scripted_decoder,
    text_options,
    words,
)
from tiny_models import EOS, tiny_model
from tts_decode import Budget, Choice, SamplingParams, TreeDecoder, gather
from tts_decode.completions.completion import Completion, CompletionRequest
from tts_decode.completions.decoder import TextDecoder, render_turns
from tts_decode.errors import BranchReleasedError, EngineError, UnsupportedByEngineError
from tts_decode.rewards import mean_logprob, self_evaluation, verifier
from tts_decode.search import (
    STRATEGIES,
    SearchRun,
    atts,
    beam_search,
    best_of_n,
    ets,
    get_strategy,
    lm_beam_search,
    rebase,
    self_consistency,
)
from tts_decode.search.journal import Journal

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "Question?\n"


def grade(text):
    return sum(ord(char) * (i % 5 + 1) for i, char in enumerate(text)) % 101 / 101


# -- strategies against plain transcriptions of their algorithms


def plain_samples(ask, n):
    """n answers, a step of each in turn."""
    texts, ended = [""] * n, [False] * n
    while not all(ended):
        for i in range(n):
            if not ended[i]:
                text, reason = ask(PROMPT + texts[i])
                texts[i] += text
                ended[i] = reason == "eos"
    return texts


def plain_beam(ask, n, width):
    live, done = [""] * n, []
    while live and len(done) < n:
        grown = []
        for text in live:
            step, reason = ask(PROMPT + text)
            (done if reason == "eos" else grown).append(text + step)
        order = sorted(range(len(grown)), key=lambda i: -grade(grown[i]))[: n // width]
        shares = {i: n // len(order) + (place < n % len(order)) for place, i in enumerate(order)}
        live = [text for i, text in enumerate(grown) for _ in range(shares.get(i, 0))]
    return done


def plain_rebase(ask, n, balance=0.2):
    live, done = [""] * n, []
    while live:
        grown = []
        for text in live:
            step, reason = ask(PROMPT + text)
            (done if reason == "eos" else grown).append(text + step)
        weights = [math.exp(grade(text) / balance) for text in grown]
        quotas = [len(grown) * weight / sum(weights) for weight in weights]
        counts = [int(quota) for quota in quotas]
        rest = sorted(range(len(grown)), key=lambda i: counts[i] - quotas[i])
        for i in rest[: len(grown) - sum(counts)]:
            counts[i] += 1
        live = [text for text, count in zip(grown, counts, strict=True) for _ in range(count)]
    return done


@pytest.mark.parametrize("seed", range(8))
def test_strategies_decide_as_their_plain_transcriptions(seed):
    script = random_script(seed)

    def run(strategy, **options):
        return run_scripted(scripted_decoder(script), strategy, PROMPT, n=6, **options)

    samples = plain_samples(counted(script), 6)
    result = run(best_of_n, scorer=scorer(grade))
    assert sorted(c.text for c in result.candidates) == sorted(samples)
    assert grade(result.answer) == max(map(grade, samples))
    votes = Counter(text[-1] for text in samples)
    assert run(self_consistency).votes == votes

    for result, expected in (
        (run(beam_search, beam_width=2, scorer=scorer(grade)), plain_beam(counted(script), 6, 2)),
        (run(rebase, scorer=scorer(grade)), plain_rebase(counted(script), 6)),
    ):
        assert [c.text for c in result.candidates if c.complete] == expected
        assert result.answer == max(expected, key=grade)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_runs_on_a_completion_call(name):
    def logprobs_of(prefix, text):
        return [-1.0 - zlib.crc32((prefix + word).encode()) % 8 / 8 for word in words(text)]

    def run():
        decoder = scripted_decoder(random_script(3), logprobs_of=logprobs_of)
        return run_scripted(decoder, get_strategy(name), PROMPT, **text_options(name))

    if name in NEEDS_A_MODEL:
        with pytest.raises(UnsupportedByEngineError):
            run()
        return
    result = run()
    assert result.candidates
    assert result.best.text
    again = run()
    assert (again.answer, again.candidates) == (result.answer, result.candidates)


def test_a_search_is_resumed_from_its_journal_without_asking_again(tmp_path):
    """A resumed search counts requests anew, so that only the first step differs by that count here."""

    def script(prefix, k):
        return random_script(5)(prefix, k if prefix == PROMPT else 0)

    def run(decoder, **options):
        async def search():
            root = await decoder.root(PROMPT, budget=Budget(max_tokens=1000))
            run = SearchRun(root, journal=Journal(tmp_path / "journal", **options))
            result = await rebase(run, n=4, scorer=scorer(grade))
            root.release()
            return result, root.budget.tokens_used

        return decoder.run(search())

    first = scripted_decoder(script)
    (expected, used), calls = run(first), len(first.complete.calls)
    lines = (tmp_path / "journal").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal").write_bytes(b"".join(lines[: len(lines) // 2]))

    second = scripted_decoder(script)
    asked = Counter(call.prefix for call in first.complete.calls)
    result, used_again = run(second, resume=True)
    assert 0 < len(second.complete.calls) < calls
    assert not Counter(call.prefix for call in second.complete.calls) - asked
    assert used_again == used
    assert result.answer == expected.answer
    assert result.candidates == expected.candidates


# -- the same model behind a completion call and on the tree


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
        sampling = SamplingParams(
            temperature=request.temperature,
            top_k=request.top_k,
            seed=request.seed,
            max_tokens=request.max_tokens,
            max_step_tokens=request.max_tokens,
            stop=request.stop,
        )
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


# -- requests


def test_requests_carry_the_sampling_parameters():
    decoder = scripted_decoder(lambda prefix, k: ("word\n", "stop_string"))
    sampling = SamplingParams(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, stop="\n", seed=9
    )

    async def search():
        root = await decoder.root(PROMPT, sampling)
        first, second = root.fork(2)
        await gather(first.step(), second.step(temperature=0.0))
        await first.step()

    decoder.run(search())
    one, two, three = (call.request for call in decoder.complete.calls)
    assert one == CompletionRequest(PROMPT, 256, 0.5, 0.9, ("\n",), one.seed, True, 7, 0.1, 1.2)
    assert two.temperature == 0.0
    assert three.prompt == PROMPT + "word\n"
    assert len({one.seed, two.seed, three.seed}) == 3
    assert all(0 <= request.seed < 2**31 for request in (one, two, three))


def test_biases_go_to_the_engine_and_penalties_while_it_can_count():
    decoder = scripted_decoder(lambda prefix, k: ("word\n", "stop_string"))
    biased = SamplingParams(logit_bias={7: -100, 3: 2}, stop="\n")

    async def search():
        root = await decoder.root(PROMPT, biased)
        await root.step(frequency_penalty=0.5, presence_penalty=-0.5)
        for name in ("frequency_penalty", "presence_penalty"):  # a call counts its own tokens alone
            with pytest.raises(UnsupportedByEngineError, match=f"SamplingParams.{name} over several steps"):
                await root.step(**{name: 0.5})
        await root.step()

    decoder.run(search())
    first, second = (call.request for call in decoder.complete.calls)
    assert first.logit_bias == second.logit_bias == ((3, 2.0), (7, -100.0))
    assert (first.frequency_penalty, first.presence_penalty) == (0.5, -0.5)
    assert (second.frequency_penalty, second.presence_penalty) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_logprobs", 3),
        ("constraint", Choice(["a"])),
        ("suppress_token_ids", (1,)),
        ("stop_token_ids", (1,)),
    ],
)
def test_parameters_that_no_completion_call_has_are_refused_by_name(name, value):
    decoder = scripted_decoder(lambda prefix, k: ("word\n", "stop_string"))

    async def search():
        root = await decoder.root(PROMPT, SamplingParams(stop="\n", **{name: value}))
        with pytest.raises(UnsupportedByEngineError, match=f"SamplingParams.{name}: leave it at its default"):
            await root.step()

    decoder.run(search())
    assert decoder.complete.calls == []


@pytest.mark.parametrize("own", [0, 9])
def test_a_steps_seed_holds_whatever_the_branchs_is(own):
    decoder = scripted_decoder(lambda prefix, k: ("word\n", "stop_string"))

    async def search():
        for seed in (0, 9, 4):
            alone = await decoder.root(PROMPT, SamplingParams(seed=seed))
            root = await decoder.root(PROMPT, SamplingParams(seed=own))
            (child,) = root.fork()
            await alone.step()
            await child.step(seed=seed)
            await root.step(seed=seed)

    decoder.run(search())
    seeds = [call.request.seed for call in decoder.complete.calls]
    assert seeds[0::3] == seeds[1::3] == seeds[2::3]
    assert len(set(seeds)) == 3


def test_seeds_are_the_same_in_the_same_search_and_change_with_the_roots():
    def seeds(seed):
        decoder = scripted_decoder(random_script(0))
        run_scripted(decoder, rebase, PROMPT, sampling=SamplingParams(seed=seed), n=4, scorer=scorer(grade))
        return [(call.prefix, call.request.seed) for call in decoder.complete.calls]

    assert seeds(1) == seeds(1)
    assert {seed for _, seed in seeds(1)}.isdisjoint(seed for _, seed in seeds(2))


def test_messages_are_rendered():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    assert render_turns(messages) == "System: Be brief.\nUser: 2 + 2?\nAssistant:"
    decoder = TextDecoder(_never, render=lambda turns: f"<{turns[-1]['content']}>")
    assert decoder.run(decoder.root(messages)).full_text == "<2 + 2?>"
    assert decoder.knows_chat
    assert not TextDecoder(_never).knows_chat


async def _never(request):
    raise AssertionError("no call was expected")


@pytest.mark.parametrize(
    ("sampling", "completion", "reason", "final"),
    [
        ({}, Completion("a b", "eos"), "eos", True),
        ({"stop": ";"}, Completion("a; b", "stop_string"), "stop_string", False),
        ({"max_step_tokens": 3}, Completion("abc", "length", (7, 8, 9)), "max_step_tokens", False),
        ({"max_step_tokens": 4}, Completion("abc", "length", (7, 8, 9)), "length", True),
        ({"max_step_tokens": 9}, Completion("", "length"), "length", True),
        ({"max_step_tokens": 9}, Completion("untold", "length"), "max_step_tokens", False),
        ({"max_tokens": 3}, Completion("abc", "length", (7, 8, 9)), "max_tokens", True),
        ({"max_tokens": 9}, Completion("untold", "length"), "max_tokens", True),
    ],
)
def test_finish_reasons(sampling, completion, reason, final):
    async def complete(request):
        return completion

    async def search(decoder):
        root = await decoder.root(PROMPT)
        step = await root.step()
        return root, step

    decoder = TextDecoder(complete, sampling=SamplingParams(**sampling))
    root, step = decoder.run(search(decoder))
    assert step.reason == reason
    assert root.finished == final
    assert root.text == step.text == completion.text
    if final:
        again = decoder.run(root.step())
        assert (again.tokens, again.reason) == ((), reason)


def test_an_end_can_be_taken_back_and_gone_on_from():
    """What budget forcing does: drop the end token, append a text, go on; in that text no cut is possible."""
    said = {PROMPT: ("So 4.", "eos"), PROMPT + "So 4. Wait,": (" no, 5.", "eos")}

    async def search(decoder):
        root = await decoder.root(PROMPT)
        await root.step()
        root.truncate(root.length - 1)
        assert (root.text, root.finished) == ("So 4.", False)
        assert math.isnan((await root.extend(" Wait,")).item())
        await root.step()
        return root

    decoder = scripted_decoder(lambda prefix, k: said[prefix])
    root = decoder.run(search(decoder))
    assert root.text == "So 4. Wait, no, 5."
    assert root.tokens.count(-1) == 2  # the prompt and the forced text
    assert root.length == 1 + 2 + 1 + 3


# -- budgets and limits


@pytest.mark.parametrize("seed", range(5))
def test_concurrent_calls_stay_within_the_budget(seed):
    rng = random.Random(seed)
    budget = Budget(max_tokens=rng.randint(20, 60))
    script = random_script(seed)
    decoder = scripted_decoder(script, latency=lambda prefix, k: (len(prefix) + k) % 3)
    sampling = SamplingParams(max_tokens=50, max_step_tokens=rng.randint(3, 12))
    result = run_scripted(
        decoder, best_of_n, PROMPT, sampling=sampling, budget=budget, n=8, scorer=scorer(grade)
    )
    assert budget.tokens_used <= budget.max_tokens
    assert budget.tokens_used == sum(len(c.tokens) for c in result.candidates)
    assert budget.tokens_used == decoder.stats().generated_tokens
    if not all(c.complete for c in result.candidates):
        assert budget.exhausted


def test_what_a_call_did_not_use_of_the_budget_goes_to_those_that_wait():
    """Budget 10, calls that may use 8 but use 2: all but the last get the 8 they ask for."""
    decoder = scripted_decoder(lambda prefix, k: ("yes", "eos"))
    budget = Budget(max_tokens=10)

    async def search():
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=8), budget)
        children = root.fork(6)
        await gather(child.step() for child in children)
        return [child.finish_reason for child in children]

    assert decoder.run(search()) == ["eos"] * 5 + ["budget"]
    assert [call.request.max_tokens for call in decoder.complete.calls] == [8, 8, 6, 4, 2]


def test_calls_in_flight_are_limited_and_metered():
    flying, most = 0, 0

    async def complete(request):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.002)
        flying -= 1
        return Completion("yes", "eos", (5, 6))

    decoder = TextDecoder(complete, max_concurrency=3)
    for _ in range(2):  # a second event loop works too
        run_scripted(decoder, best_of_n, PROMPT, n=7, scorer=scorer(grade))
    assert most == 3
    stats = decoder.stats()
    assert (stats.steps, stats.generated_tokens) == (14, 28)
    assert (stats.branches, stats.resident_bytes, stats.cost.combined()) == (0, 0, 0)
    assert stats.seconds >= 2 * 3 * 0.002


# -- failures


def test_a_failed_call_leaves_the_branch_and_the_budget_as_they_were():
    fail = True

    async def complete(request):
        if fail:
            raise ConnectionError("server gone")
        return Completion("yes", "eos", (5, 6))

    async def search(decoder):
        nonlocal fail
        root = await decoder.root(PROMPT, budget=budget)
        with pytest.raises(ConnectionError, match="server gone"):
            await root.step()
        assert (root.length, root.text, root.steps, root.finished) == (1, "", [], False)
        fail = False
        await root.step()
        return root.text

    budget = Budget(max_tokens=3)
    decoder = TextDecoder(complete)
    assert decoder.run(search(decoder)) == "yes"
    assert budget.tokens_used == 2


def test_release_and_cancellation_end_the_call():
    cancelled = []

    async def complete(request):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(request.prompt)
            raise

    async def search(decoder):
        root = await decoder.root(PROMPT, budget=Budget(max_tokens=100))
        released, dropped = root.fork(2)
        steps = [asyncio.ensure_future(branch.step(max_step_tokens=50)) for branch in (released, dropped)]
        await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="already waits"):
            await released.step()
        released.release()
        steps[1].cancel()
        with pytest.raises(BranchReleasedError):
            await steps[0]
        with pytest.raises(asyncio.CancelledError):
            await steps[1]
        with pytest.raises(BranchReleasedError):
            released.fork()
        assert dropped.length == 1
        waiting = asyncio.ensure_future(dropped.step())  # all of the budget is free again
        await asyncio.sleep(0.001)
        waiting.cancel()

    decoder = TextDecoder(complete)
    decoder.run(search(decoder))
    assert cancelled == [PROMPT] * 3


def test_what_happens_to_a_branch_while_it_waits():
    """Declared finished, it keeps what its call brings; released while it waits for the budget's tokens, it
    leaves them to the others."""
    decoder = scripted_decoder(lambda prefix, k: ("yes\n", "stop_string"), latency=lambda prefix, k: 5)

    async def search():
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=8), Budget(max_tokens=9))
        declared, released, last = root.fork(3)
        steps = [asyncio.ensure_future(branch.step()) for branch in (declared, released, last)]
        await asyncio.sleep(0)
        declared.finish("answer")
        released.release()
        with pytest.raises(BranchReleasedError):
            await steps[1]
        assert (await steps[0]).reason == "answer"
        assert (declared.text, declared.finish_reason) == ("yes\n", "answer")
        assert (await steps[2]).text == "yes\n"
        assert root.budget.tokens_used == 2

    decoder.run(search())
    assert [call.request.max_tokens for call in decoder.complete.calls] == [8, 8]


@pytest.mark.parametrize(
    ("completion", "error", "message"),
    [
        ("text", TypeError, "complete: got a str from it"),
        (Completion("a b c", "length", (1, 2, 3)), EngineError, "has 3 tokens; at most 2 were asked"),
        (Completion("a", "stop_string", (1,)), EngineError, "holds none of"),
    ],
)
def test_wrong_completions_are_refused(completion, error, message):
    async def complete(request):
        return completion

    async def search(decoder):
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=2, stop=";"))
        with pytest.raises(error, match=message):
            await root.step()
        return root.length

    decoder = TextDecoder(complete)
    assert decoder.run(search(decoder)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "stop"), "finish_reason: got 'stop'"),
        (("a b", "eos", (1, 2, 3), (0.0,)), "logprobs: got 1 entries for 3 tokens"),
        (("a b", "length", (), (-1.0,)), "logprobs: got 1 entries for 0 tokens"),
        (("a b", "length", (1, 2), (), (), ("a", "b")), "expected what adds up"),
        (("ab", "eos", (1, 2), (), (), ("a", "b")), "expected '' for the end token"),
        (("", "stop_string"), "text: got none after 'stop_string'"),
    ],
)
def test_inconsistent_completions_cannot_be_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        Completion(*arguments)


# -- what a text engine cannot give


def test_cuts_inside_a_step_need_the_texts_of_its_tokens():
    async def complete(request):
        return Completion("one two", "eos", (1, 2, 3))

    async def search(decoder):
        root = await decoder.root(PROMPT)
        await root.step()
        with pytest.raises(UnsupportedByEngineError, match=r"at=2, inside a step .* as at 1"):
            root.fork(at=2)
        with pytest.raises(UnsupportedByEngineError, match="length=2"):
            root.truncate(2)
        assert root.length == 4
        (before_end,) = root.fork(at=3)
        assert (before_end.text, before_end.finished, before_end.steps) == ("one two", False, [])

    decoder = TextDecoder(complete)
    decoder.run(search(decoder))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda branch: branch.next_logprobs([1]), "by token id"),
        (lambda branch: branch.logprobs_of("yes"), "score="),
        (lambda branch: branch.extend([1, 2]), "token ids"),
        (lambda branch: branch.step(stop_token_ids=(4,)), "SamplingParams.stop_token_ids"),
        (lambda branch: branch.decoder.root([1, 2]), "token ids"),
        (lambda branch: branch.decoder.root("a", budget=Budget(max_cost=1.0)), "max_cost"),
        (lambda branch: self_evaluation()([branch]), "token_ids"),
        (lambda branch: branch.read("a", [0]), "Branch.read"),
        (lambda branch: branch.decoder.pin(branch), "TreeDecoder.pin"),
        (lambda branch: lm_beam_search(branch), "log-probabilities by token id"),
        (lambda branch: ets(branch, scorer=verifier(grade)), "hidden states"),
    ],
)
def test_what_is_not_there_is_named(call, message):
    async def search(decoder):
        root = await decoder.root(PROMPT)
        await call(root)

    decoder = scripted_decoder(random_script(0))
    with pytest.raises(UnsupportedByEngineError, match=message):
        decoder.run(search(decoder))


def test_unknown_log_probabilities_are_nan_and_no_score():
    async def complete(request):
        assert not request.logprobs
        return Completion("yes", "eos", (5, 6))

    decoder = TextDecoder(complete, logprobs=False)
    result = run_scripted(decoder, self_consistency, PROMPT, n=3)
    assert math.isnan(result.best.logprob)
    with pytest.raises(ValueError, match="score nan"):
        run_scripted(decoder, best_of_n, PROMPT, n=3, scorer=mean_logprob())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"complete": "http://..."}, "complete: got str, expected a function"),
        ({"score": 3}, "score: got int, expected a function"),
        ({"sampling": {}}, "sampling: got dict, expected a SamplingParams"),
        ({"max_concurrency": 0}, "max_concurrency: got 0, expected >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TextDecoder(**{"complete": _never} | arguments)


@pytest.mark.parametrize("prompt", ["", [], 5, {"role": "user"}, [{"role": "user"}]])
def test_bad_prompts_are_refused(prompt):
    decoder = TextDecoder(_never)
    with pytest.raises((TypeError, ValueError), match="prompt"):
        decoder.run(decoder.root(prompt))


def test_problems_may_fail_alone():
    decoder = scripted_decoder(lambda prefix, k: ("fine", "eos"))

    async def good():
        root = await decoder.root("Q: ")
        return (await root.step()).text

    async def bad():
        raise ValueError("this one")

    first, error, last = decoder.run_all([good(), bad(), good()], return_exceptions=True)
    assert (first, str(error), last) == ("fine", "this one", "fine")
    with pytest.raises(ValueError, match="this one"):
        decoder.run_all([good(), bad()])


def test_atts_says_that_it_needs_an_engine_that_scores():
    async def complete(request):
        return Completion("yes", "eos", (5, 6))

    with pytest.raises(UnsupportedByEngineError, match=r"log-probabilities.*TextDecoder's score="):
        run_scripted(TextDecoder(complete), atts, PROMPT, n=2, calibration=[1.0, 2.0, 3.0])
