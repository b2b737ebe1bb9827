"""Reward models: each reader against a plain forward, the mirrored tree, what it saves, and loading."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from scripted import run_scripted, scripted_decoder
from tiny_models import byte_tokenizer, tiny_model
from torch import Tensor, nn
from tts_decode import (
    KVBudget,
    ModelLoadError,
    OutOfPagesError,
    SamplingParams,
    StaleKVError,
    Step,
    TreeDecoder,
    gather,
)
from tts_decode.core.prompts import question_in
from tts_decode.rewards import (
    READERS,
    ClassHead,
    Reader,
    Reading,
    RewardModel,
    TagTemplate,
    TokenSoftmax,
    ValueHead,
    VocabularyMean,
    load_reward_model,
)
from tts_decode.rewards.reward_model import step_texts
from tts_decode.search import beam_search

pytestmark = pytest.mark.usefixtures("one_thread")

KV_BYTES = 4 << 20
CHAT = "{% for m in messages %}<{{ m.role }}>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
PLUS, MINUS = ord("+"), ord("-")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
SEQUENCE, TOKEN = hf.AutoModelForSequenceClassification, hf.AutoModelForTokenClassification


class Answer:
    """A policy's branch as far as a scorer looks at it."""

    def __init__(self, steps: list[str], parent: Answer | None = None, prompt: Any = "2 + 3 = ?") -> None:
        self.id, self.parent, self.prompt = 7, parent, prompt
        self.steps = [Step(text, (), (), (), "stop_string") for text in steps]

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def question(self) -> str | None:
        return question_in(self.prompt)

    def grow(self, step: str) -> Answer:
        """A child with one step more."""
        return Answer([*(step.text for step in self.steps), step], self, self.prompt)


def words(rng: random.Random, count: int, letters: str = "abc+-0 ") -> str:
    """Random text that neither begins nor ends with a blank."""
    return "x" + "".join(rng.choice(letters) for _ in range(count)) + "y"


def decoder_of(model: Any, tokenizer: Any, **options: Any) -> TreeDecoder:
    return TreeDecoder(model, tokenizer, **{"kv_bytes": KV_BYTES, **options})


def plain_states(model: Any, ids: list[int]) -> Tensor:
    """float32 [T, hidden]: the last hidden states of one forward over the whole text."""
    with torch.no_grad():
        return model.base_model(torch.tensor([ids])).last_hidden_state[0]


def plain_logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


# -- the shipped readers, each against the text and the formula that its authors give


@dataclass(frozen=True)
class Published:
    """A text, written out by hand, and the scores of a plain forward over it."""

    family: str
    tags: tuple[str, ...]
    ids: Callable[[Any, str, list[str]], list[int]]
    scores: Callable[[Any, nn.Module | None, list[int]], Tensor]
    auto: Any = hf.AutoModelForCausalLM
    labels: int = 2
    head: Callable[[], nn.Module] | None = None


def text_ids(template: Callable[[str, list[str]], str]) -> Callable[[Any, str, list[str]], list[int]]:
    return lambda tokenizer, question, steps: tokenizer(template(question, steps))["input_ids"]


def softmax_at(tag: int, tokens: list[int], index: int) -> Callable[[Any, Any, list[int]], Tensor]:
    def scores(model: Any, head: Any, ids: list[int]) -> Tensor:
        return plain_logits(model, ids)[:, tokens].softmax(-1)[torch.tensor(ids) == tag, index]

    return scores


def chat_ids(tokenizer: Any, messages: list[tuple[str, str]]) -> list[int]:
    chat = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(chat, return_dict=False)


def skywork_ids(tokenizer: Any, question: str, steps: list[str]) -> list[int]:
    ids = tokenizer(f"<eos>{question}\n")["input_ids"]
    for step in steps:
        ids += [*tokenizer(step)["input_ids"], ord("\n")]
    return ids


def skywork_scores(model: Any, head: nn.Module, ids: list[int]) -> Tensor:
    ends = [i for i, token in enumerate(ids) if token == ord("\n")][1:]
    return head(plain_states(model, ids))[ends, 0].sigmoid()


def stack() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


PUBLISHED = {
    "math_shepherd": Published(
        "mistral",
        ("ки",),
        text_ids(lambda q, s: f"{q} Step 1: {s[0]} ки\nStep 2: {s[1]} ки\nStep 3: {s[2]} ки"),
        softmax_at(257, [PLUS, MINUS], 0),
    ),
    "rebase_llemma": Published(
        "llama",
        ("ки",),
        text_ids(lambda q, s: f"{q}\n{BOXED}\n{s[0]}\n ки {s[1]}\n ки {s[2]}\n ки "),
        lambda model, head, ids: plain_logits(model, ids).mean(-1).sigmoid()[torch.tensor(ids) == 257],
    ),
    "qwen2.5_math_prm": Published(
        "qwen2",
        ("<extra_0>",),
        lambda tokenizer, q, s: chat_ids(
            tokenizer, [("system", BOXED), ("user", q), ("assistant", "<extra_0>".join([*s, ""]))]
        ),
        lambda model, head, ids: head(plain_states(model, ids)).softmax(-1)[torch.tensor(ids) == 257, 1],
        auto=hf.AutoModel,
        head=stack,
    ),
    "skywork_o1": Published(
        "qwen2", (), skywork_ids, skywork_scores, auto=hf.AutoModel, head=lambda: nn.Linear(64, 1)
    ),
    "er_prm": Published(
        "llama",
        (" ки", " +", " -"),
        text_ids(lambda q, s: f"{q} {s[0]} ки{s[1]} ки{s[2]} ки"),
        softmax_at(257, [258, 259], 0),
    ),
    "pqm": Published(
        "qwen2",
        ("[PRM]",),
        text_ids(
            lambda q, s: (
                "Below is an instruction that describes a task.\nWrite a response that appropriately "
                f"completes the request.\n\n### Instruction:\n{q}\n\n### Response: Let's think step by step\n"
                f"Step 1: {s[0]} [PRM]\nStep 2: {s[1]} [PRM]\nStep 3: {s[2]} [PRM]"
            )
        ),
        lambda model, head, ids: head(plain_states(model, ids))[torch.tensor(ids) == 257, 0],
        head=lambda: nn.Linear(64, 1),
    ),
    "versa_prm": Published(
        "llama",
        (" \n\n\n\n",),
        text_ids(lambda q, s: f"{q} \n\n{s[0]} \n\n\n\n{s[1]} \n\n\n\n{s[2]} \n\n\n\n"),
        softmax_at(257, [MINUS, PLUS], 1),
    ),
    "outcome": Published(
        "llama",
        ("<|eot_id|>",),
        lambda tokenizer, q, s: chat_ids(tokenizer, [("user", q), ("assistant", "".join(s))]),
        lambda model, head, ids: model(torch.tensor([ids])).logits[0].detach(),
        auto=SEQUENCE,
        labels=1,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_reader_equals_a_plain_forward_over_the_published_text(name: str) -> None:
    """Scores of three steps, read one by one from the model's own KV; steps hold stray tags and blanks."""
    case, rng = PUBLISHED[name], random.Random(name)
    model = tiny_model(case.family, auto=case.auto, num_labels=case.labels)
    tokenizer = byte_tokenizer(*case.tags, chat_template=CHAT)
    tokenizer.bos_token = "<eos>"  # added to a text by name only, as by Skywork's own code
    torch.manual_seed(1)
    head = case.head() if case.head else None
    if head is not None:
        nn.init.normal_(next(iter(head.parameters())))
    question, steps = words(rng, 12), [words(rng, 9) for _ in range(3)]
    ids = case.ids(tokenizer, question, steps)
    expected = case.scores(model, head, ids).tolist()

    given = (
        steps if name == "outcome" else [f" {step}{case.tags[0] if case.tags else ''}\n" for step in steps]
    )
    if name in ("math_shepherd", "pqm"):
        given = [f"Step {i}: {text}" for i, text in enumerate(given, start=1)]
    decoder = decoder_of(model, tokenizer)
    prm = RewardModel(decoder, name, head=head)
    answer = Answer([], prompt=f"{question} ")

    async def score() -> list[list[float]]:
        nonlocal answer
        scores = []
        for step in given:
            answer = answer.grow(step)
            scores.append((await prm.step_scores([answer]))[0])
        return scores

    scores = decoder.run(score())
    assert scores[-1] == pytest.approx(expected, abs=5e-5, rel=5e-5)
    if name != "outcome":
        assert [len(s) for s in scores] == [1, 2, 3]
        assert scores[0] == scores[1][:1] == scores[2][:1]  # remembered, not read again
        assert max(expected) - min(expected) > 1e-3
    assert len(PUBLISHED) + 1 == len(READERS)  # and rlhflow below


def test_rlhflow_equals_one_forward_for_each_step() -> None:
    """The reference asks once a step, three tokens before the end of a chat whose labels are all +."""
    rng = random.Random(0)
    model, tokenizer = tiny_model("llama"), byte_tokenizer("<|eot_id|>", chat_template=CHAT)
    question, steps = words(rng, 12), [words(rng, 9) for _ in range(4)]
    expected = []
    for count in range(1, len(steps) + 1):
        turns = [f"{question} {steps[0]}", *steps[1:count]]
        ids = chat_ids(tokenizer, [turn for text in turns for turn in (("user", text), ("assistant", "+"))])
        expected.append(float(plain_logits(model, ids)[-3, [PLUS, MINUS]].softmax(-1)[0]))
    decoder = decoder_of(model, tokenizer)
    prm = RewardModel(decoder, "rlhflow", question=question)
    (scores,) = decoder.run(prm.step_scores([Answer([f"{step}\n\n" for step in steps])]))
    assert scores == pytest.approx(expected, abs=5e-5)
    assert len(set(scores)) == 4


@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_token_classifiers_and_capped_logits(family: str) -> None:
    """Heads of transformers' own classes, and logits that the model caps before the softmax."""
    capped = {"final_logit_softcapping": 3.0} if family == "gemma2" else {}
    tokenizer = byte_tokenizer("ки")
    template = TagTemplate("{question} ", "{step} ки", tag="ки")
    answer = Answer(["ab", "cd"], prompt="q")
    ids = tokenizer("q ab киcd ки")["input_ids"]
    tags = torch.tensor(ids) == 257

    causal = tiny_model(family, **capped)
    expected = plain_logits(causal, ids)[:, [PLUS, MINUS, ord("0")]].softmax(-1)[tags, 2]
    decoder = decoder_of(causal, tokenizer)
    prm = RewardModel(decoder, Reader("three", template, TokenSoftmax(("+", "-", "0"), index=2)))
    assert decoder.run(prm.step_scores([answer]))[0] == pytest.approx(expected.tolist(), abs=5e-5)

    classes = tiny_model(family, auto=TOKEN, num_labels=3)
    expected = plain_logits(classes, ids).softmax(-1)[tags, 1]
    decoder = decoder_of(classes, tokenizer)
    prm = RewardModel(decoder, Reader("classes", template, ClassHead(1)))
    assert decoder.run(prm.step_scores([answer]))[0] == pytest.approx(expected.tolist(), abs=5e-5)


# -- the mirrored tree


def joined(tokenizer: Any, question: str, steps: Any) -> Reading:
    """No tags: each step is read at the token of its last letter, whatever the tokenizer makes of it."""
    text, ends = question, []
    for step in steps:
        text += step
        ends.append(len(text) - 1)
    encoding = tokenizer(text)
    positions = [encoding.char_to_token(end) for end in ends]
    return Reading(encoding["input_ids"][: positions[-1] + 1], [(position,) for position in positions])


@pytest.mark.parametrize("seed", range(4))
def test_a_random_tree_scores_as_plain_forwards_do(seed: int) -> None:
    """Merges across the ends of steps change tokens that were read already; roll-backs and siblings too."""
    rng = random.Random(seed)
    model, tokenizer = tiny_model(seed=seed), byte_tokenizer(pairs=["ab", "bc", "ca"])
    head = nn.Linear(64, 1)
    reader = Reader("joined", joined, ValueHead())
    decoder = decoder_of(model, tokenizer)
    prm = RewardModel(decoder, reader, head=head)
    changed = 0

    def expected(answer: Answer) -> list[float]:
        reading = joined(tokenizer, answer.prompt, step_texts(answer))
        rows = [position for (position,) in reading.positions]
        return head(plain_states(model, reading.ids))[rows, 0].tolist()

    async def search() -> None:
        nonlocal changed
        root = Answer([], prompt="abcab")
        live = [root]
        for _ in range(6):
            live = [parent.grow(words(rng, rng.randrange(4), "abc")[1:-1] or "b") for parent in live * 2]
            live = rng.sample(live, min(len(live), 5))
            if rng.random() < 0.5:  # the branch itself goes on, or is rolled back and goes another way
                live[0].steps[-1] = replace(live[0].steps[-1], text="ca")
            scores = await prm.step_scores(live)
            for answer, given in zip(live, scores, strict=True):
                assert given == pytest.approx(expected(answer), abs=5e-5)
                before = joined(tokenizer, answer.prompt, step_texts(answer.parent)).ids
                changed += joined(tokenizer, answer.prompt, step_texts(answer)).ids[: len(before)] != before
        again = prm.tokens_read
        await prm.step_scores(live)
        assert prm.tokens_read == again  # nothing is read twice

    decoder.run(search())
    assert changed >= 2
    assert decoder.stats().forward_tokens == prm.tokens_read


@pytest.mark.parametrize("what", ["layer", "own head", "head beside the model", "tokens' logits", "told"])
def test_scores_are_of_the_weights_as_they_are(what: str) -> None:
    """Neither hidden states nor read-outs of before are used, also for steps that were scored before."""
    tokenizer = byte_tokenizer("ки")
    template = TagTemplate("{question} ", "{step} ки", tag="ки")
    beside = nn.Linear(64, 1) if what == "head beside the model" else None
    if what == "tokens' logits":
        model, readout = tiny_model(), TokenSoftmax(("+", "-"))
    elif beside is not None:
        model, readout = tiny_model(), ValueHead()
    else:
        model, readout = tiny_model(auto=TOKEN, num_labels=2), ClassHead(1)
    decoder = decoder_of(model, tokenizer)
    prm = RewardModel(decoder, Reader("any", template, readout), head=beside)
    parent = Answer(["ab"], prompt="q")
    changed = {
        "layer": lambda: model.base_model.layers[1].mlp.up_proj.weight,
        "own head": lambda: model.score.weight,
        "head beside the model": lambda: beside.weight,
        "tokens' logits": lambda: model.lm_head.weight,
        "told": lambda: model.score.weight.data,
    }[what]

    def expected(answer: Answer) -> list[float]:
        ids = tokenizer("q " + "".join(f"{step.text} ки" for step in answer.steps))["input_ids"]
        tags = torch.tensor(ids) == 257
        if beside is not None:
            return beside(plain_states(model, ids))[tags, 0].tolist()
        if what == "tokens' logits":
            return plain_logits(model, ids)[:, [PLUS, MINUS]].softmax(-1)[tags, 0].tolist()
        return plain_logits(model, ids).softmax(-1)[tags, 1].tolist()

    async def train() -> None:
        answers = [parent, parent.grow("cd"), parent.grow("ef")]
        for _ in range(3):
            scores = await prm.step_scores(answers)
            for answer, given in zip(answers, scores, strict=True):
                assert given == pytest.approx(expected(answer), abs=5e-5)
            before = expected(answers[1])
            with torch.no_grad():
                changed().mul_(1.3)
            if what == "told":
                decoder.weights_changed()
            assert max(abs(a - b) for a, b in zip(before, expected(answers[1]), strict=True)) > 1e-3
            answers = [*answers, answers[-1].grow("gh")]

    decoder.run(train())


def test_weights_that_change_while_it_reads_are_an_error() -> None:
    tokenizer = byte_tokenizer("ки")
    template = TagTemplate("{question} ", "{step} ки", tag="ки")
    model = tiny_model(auto=TOKEN, num_labels=2)
    decoder = decoder_of(model, tokenizer, max_batch_tokens=4)
    prm = RewardModel(decoder, Reader("classes", template, ClassHead(1)))

    async def train() -> None:
        for layer in (model.model.layers[0].mlp.up_proj, model.score):
            answer = Answer(["ab" * 20], prompt="q")
            reading = asyncio.ensure_future(prm.step_scores([answer]))
            steps = decoder.stats().steps
            while decoder.stats().steps < steps + 4 and not reading.done():
                await asyncio.sleep(0)
            with torch.no_grad():
                layer.weight.add_(0.5)
            with pytest.raises(StaleKVError):
                await reading
            ids = tokenizer(f"q {'ab' * 20} ки")["input_ids"]
            expected = plain_logits(model, ids).softmax(-1)[torch.tensor(ids) == 257, 1].tolist()
            assert (await prm.step_scores([answer]))[0] == pytest.approx(expected, abs=5e-5)

    decoder.run(train())


def test_ten_steps_read_five_times_fewer_tokens() -> None:
    """Alone and in a beam, and both counters are what they say."""
    tokenizer, rng = byte_tokenizer("ки"), random.Random(0)

    async def grow(prm: RewardModel, width: int) -> list[float]:
        live = [Answer([], prompt=words(rng, 60))]
        ratios = []
        for _ in range(10):
            live = [live[i % len(live)].grow(words(rng, 30) + "\n") for i in range(width)]
            await prm(live)
            ratios.append(prm.tokens_full / prm.tokens_read)
            live = live[: max(1, width // 2)]
        return ratios

    for width, least in ((1, 5.0), (8, 5.0)):
        decoder = decoder_of(tiny_model(), tokenizer)
        prm = RewardModel(decoder, "math_shepherd")
        ratios = decoder.run(grow(prm, width))
        assert prm.tokens_read == decoder.stats().forward_tokens
        assert ratios[-1] >= least, (prm.tokens_read, prm.tokens_full)


def test_all_branches_are_read_in_the_same_forwards() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    prm = RewardModel(decoder, "math_shepherd")
    root = Answer([])
    decoder.run(prm([root.grow(f"step {i}") for i in range(9)]))
    assert decoder.stats().steps == 2  # the question, then all steps

    async def apart() -> None:
        await gather(prm([root.grow(f"other {i}")]) for i in range(9))

    before = decoder.stats().steps
    decoder.run(apart())
    assert decoder.stats().steps == before + 1


def test_pages_return_with_the_branches() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    prm = RewardModel(decoder, "math_shepherd")
    root = Answer([])
    children = [root.grow("first " * 9), root.grow("second " * 9)]
    decoder.run(prm(children))
    grandchild = children[0].grow("third " * 9)
    decoder.run(prm([grandchild]))
    held = decoder.stats().resident_bytes
    del children[1]
    assert decoder.stats().branches == 3  # root, child and grandchild
    assert decoder.stats().resident_bytes < held
    del children
    assert decoder.stats().branches == 3  # the grandchild needs its parent
    del grandchild
    assert decoder.stats().branches == 1
    del root
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)


def test_close_gives_everything_back_and_reading_starts_anew() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    answer = Answer(["one", "two"])
    with RewardModel(decoder, "math_shepherd") as prm:
        first = decoder.run(prm([answer]))
        assert decoder.stats().branches == 1
    assert decoder.stats().resident_bytes == 0
    assert decoder.run(prm([answer])) == pytest.approx(first, abs=1e-6)
    assert prm.tokens_read == prm.tokens_full


def test_a_search_leaves_nothing_in_the_reward_model() -> None:
    """A real policy and its search; every score of its tree equals that of a plain forward."""
    policy = decoder_of(tiny_model(seed=3), byte_tokenizer())
    model, tokenizer = tiny_model("mistral"), byte_tokenizer("ки")
    decoder = decoder_of(model, tokenizer)
    prm = RewardModel(decoder, "math_shepherd", question="2 + 3 = ?")
    checked = 0

    async def checking(branches: Any) -> list[float]:
        nonlocal checked
        scores = await prm(branches)
        for branch, score in zip(branches, scores, strict=True):
            reading = prm.reader.template(tokenizer, "2 + 3 = ?", step_texts(branch))
            plain = plain_logits(model, reading.ids)[-1, [PLUS, MINUS]].softmax(-1)[0]
            assert score == pytest.approx(float(plain), abs=5e-5)
            checked += 1
        return scores

    async def search() -> None:
        sampling = SamplingParams(max_step_tokens=8, max_tokens=40, seed=1)
        root = await policy.root("2 + 3 =", sampling)
        await beam_search(root, n=6, beam_width=2, scorer=checking)
        assert decoder.stats().branches == 1  # the question, for the next search from this root
        root.release()

    policy.run(search())
    gc.collect()  # what failed or was cancelled may sit in cycles of its traceback
    assert decoder.stats().branches == policy.stats().branches == 0
    assert decoder.stats().resident_bytes == 0
    assert checked >= 24
    assert prm.tokens_full > 2 * prm.tokens_read


def test_a_policy_of_text_alone_has_a_mirror_too() -> None:
    """A policy behind a completion call has no KV of ours; what judges it still reads each step once."""
    policy = scripted_decoder(lambda prefix, k: (f"{len(prefix) * 7 % 10} and {k}\n", "stop_string"))
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    prm = RewardModel(decoder, "math_shepherd")
    result = run_scripted(policy, beam_search, "2 + 3 =", n=4, beam_width=2, max_steps=6, scorer=prm)
    steps = [line + "\n" for line in result.best.text.splitlines()]
    ids = prm.reader.template(decoder.tokenizer, "2 + 3 =", steps).ids
    expected = plain_logits(decoder.model, ids)[:, [PLUS, MINUS]].softmax(-1)[torch.tensor(ids) == 257, 0]
    assert result.best.scores == pytest.approx(expected.tolist(), abs=5e-5)
    assert prm.tokens_full > 3 * prm.tokens_read
    gc.collect()
    assert decoder.stats().branches == 0


def test_a_model_judges_itself_on_its_own_tree() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))

    async def search() -> None:
        root = await decoder.root("2 + 3 =", SamplingParams(max_step_tokens=8, max_tokens=24))
        with RewardModel(decoder, "math_shepherd", agg_strategy="whole") as prm:
            result = await beam_search(root, n=4, beam_width=2, scorer=prm)
            ids = prm.reader.template(decoder.tokenizer, "2 + 3 =", [result.best.text]).ids
            assert result.best.score == pytest.approx(
                float(plain_logits(decoder.model, ids)[-1, [PLUS, MINUS]].softmax(-1)[0]), abs=1e-5
            )
        root.release()

    decoder.run(search())
    gc.collect()
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)


def test_policy_and_reward_model_share_one_budget() -> None:
    """Each grows into what the other leaves, never beyond the sum, and pages go back and forth."""
    budget = KVBudget(1 << 20)
    policy = decoder_of(tiny_model(seed=3), byte_tokenizer(), kv_bytes=budget)
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"), kv_bytes=budget)
    prm = RewardModel(decoder, "math_shepherd", question="q")
    question = Answer([])
    answers = [question.grow(f"{letter} " * 150) for letter in "ab"]

    async def compete() -> None:
        root = await policy.root("x" * 320)
        await prm(answers[:1])
        held = policy.stats().resident_bytes, decoder.stats().resident_bytes
        assert budget.resident == sum(held) <= budget.total
        assert sum(held) + held[1] > budget.total > 2 * held[1]  # no room for two until the policy goes
        with pytest.raises(OutOfPagesError):
            await prm(answers)
        assert decoder.stats().resident_bytes == held[1]
        root.release()
        await prm(answers)

    policy.run(compete())
    assert budget.peak <= budget.total
    prm.close()
    gc.collect()
    assert budget.resident == 0


def test_a_cancelled_or_failed_call_changes_nothing() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"), kv_bytes=1 << 18, max_batch_tokens=16)
    prm = RewardModel(decoder, "math_shepherd")
    parent = Answer(["fine"])
    before = decoder.run(prm([parent]))
    branches, resident = decoder.stats().branches, decoder.stats().resident_bytes

    async def cancelled() -> None:
        task = asyncio.ensure_future(prm([parent.grow("word " * 20), parent.grow("other " * 20)]))
        while decoder.stats().forward_tokens == fed:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def too_much() -> None:
        await prm([parent.grow(f"{i} " * 40) for i in range(40)])

    fed = decoder.stats().forward_tokens
    decoder.run(cancelled())
    with pytest.raises(OutOfPagesError):
        decoder.run(too_much())
    gc.collect()
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (branches, resident)
    assert decoder.run(prm([parent])) == before


def test_aggregations_of_a_whole_answer() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    answer = Answer(["one ", "two ", "three"])
    (scores,) = decoder.run(RewardModel(decoder, "math_shepherd").step_scores([answer]))
    for name, expected in {"last": scores[-1], "min": min(scores), "window:2": sum(scores[1:]) / 2}.items():
        prm = RewardModel(decoder, "math_shepherd", agg_strategy=name)
        assert decoder.run(prm([answer])) == pytest.approx([expected], abs=1e-6)
    whole = RewardModel(decoder, "math_shepherd", agg_strategy="whole")
    as_one = RewardModel(decoder, "math_shepherd")
    assert decoder.run(whole([answer])) == pytest.approx(decoder.run(as_one([Answer([answer.text])])))


def test_an_answer_without_text_is_one_empty_step() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    prm = RewardModel(decoder, "math_shepherd")
    root = Answer([])
    empty, blank, done = [root, root.grow("\n"), root.grow("one").grow("")]
    scores = decoder.run(prm([empty, blank, done, done.parent]))
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert scores[2] == pytest.approx(scores[3], abs=1e-6)
    assert decoder.run(prm([])) == []


def test_several_positions_and_a_function_of_ones_own() -> None:
    """A gate read at the question's end weighs what the last token says, as multi-objective models do."""

    def template(tokenizer: Any, question: str, steps: Any) -> Reading:
        head, body = tokenizer(question)["input_ids"], tokenizer("".join(steps))["input_ids"]
        return Reading(head + body, [(len(head) - 1, len(head) + len(body) - 1)])

    def gated(states: Tensor) -> Tensor:
        return (states[:, 0].softmax(-1) * states[:, 1]).sum(-1)

    model, decoder = tiny_model(), None
    decoder = decoder_of(model, byte_tokenizer())
    prm = RewardModel(decoder, Reader("gated", template, gated))
    answer = Answer(["one"]).grow(" two")
    for branch in (answer.parent, answer):
        ids = list((branch.prompt + branch.text).encode())
        states = plain_states(model, ids)
        expected = float((states[len(branch.prompt) - 1].softmax(-1) * states[-1]).sum())
        assert decoder.run(prm([branch])) == pytest.approx([expected], abs=1e-4)
    assert prm.tokens_read <= len(ids) + 2 * len(answer.prompt)


# -- texts


def test_step_texts_keep_the_whole_text() -> None:
    answer = Answer(["first\n", "", "\n", "second"])
    assert step_texts(answer) == ["first\n\n", "second"]
    assert step_texts(Answer(["\n", "one"])) == ["\none"]
    assert step_texts(Answer([])) == [""]

    class Forced(Answer):
        text = "forced first\nWait, second done"

    assert step_texts(Forced(["first\n", "second"])) == ["forced first\n", "Wait, second", " done"]

    class Split(Answer):
        text = "caf\u00e9 au lait"

    assert step_texts(Split(["caf\ufffd", "\ufffd au lait"])) == ["caf", "\u00e9 au lait"]


def test_questions_of_prompts() -> None:
    assert question_in("2 + 3") == "2 + 3"
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "3"},
    ]
    assert question_in(chat) == "2"
    decoder = decoder_of(tiny_model(), byte_tokenizer())

    async def asked() -> str:
        branch = await decoder.root(list(b"4 + 5"))
        (child,) = branch.fork()
        return child.question

    assert decoder.run(asked()) == "4 + 5"


# -- bad input


TAG = TagTemplate("{question}", "{step} ки", tag="ки")


@pytest.mark.parametrize(
    ("reader", "tags", "options", "error", "message"),
    [
        ("math_shepherd", (), {}, ValueError, "'ки' is 4 tokens .* expected one"),
        ("er_prm", (" ки",), {}, ValueError, r"' \+' is 2 tokens"),
        ("qwen2.5_math_prm", ("<extra_0>",), {}, TypeError, "LlamaForCausalLM has no head named score"),
        ("rlhflow", (), {}, ValueError, "has no chat template"),
        ("outcome", (), {"auto": SEQUENCE, "num_labels": 1}, ValueError, "has no chat template"),
        ("math_shepherd", ("ки",), {"auto": SEQUENCE}, TypeError, "has no LM head.*AutoModelForCausalLM"),
        (
            Reader("r", TAG, ClassHead(2)),
            ("ки",),
            {"auto": TOKEN},
            ValueError,
            r"index: got 2, expected 0..1",
        ),
        (Reader("r", TAG, ValueHead()), ("ки",), {"auto": TOKEN}, ValueError, "2 outputs, expected a value"),
        (
            Reader("r", TAG, ClassHead(0)),
            ("ки",),
            {"head": nn.Linear(32, 2)},
            ValueError,
            "takes 32 features",
        ),
        (Reader("r", TAG, ClassHead(0)), ("ки",), {"head": nn.ReLU()}, ValueError, "takes None features"),
        (Reader("r", TAG, TokenSoftmax(("+",), 1)), ("ки",), {}, ValueError, r"index: got 1, expected 0..0"),
        (Reader("r", TAG, VocabularyMean()), ("ки",), {"family": "gemma2"}, ValueError, "caps its logits"),
        (
            "shepherd",
            (),
            {},
            ValueError,
            "reader: got 'shepherd', expected a Reader or one of math_shepherd, ",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(
    reader: Any, tags: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    head = options.pop("head", None)
    decoder = decoder_of(tiny_model(**options), byte_tokenizer(*tags))
    with pytest.raises(error, match=message):
        RewardModel(decoder, reader, head=head)
    assert decoder.stats().branches == 0


def test_bad_scores_and_texts_name_the_branch() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    nan = Reader("broken", TAG, lambda states: torch.full((len(states),), math.nan))
    with pytest.raises(ValueError, match="reader broken gave step 1 of branch 7 the score nan"):
        decoder.run(RewardModel(decoder, nan)([Answer(["a"])]))
    shaped = Reader("shaped", TAG, lambda states: states[:, -1])
    with pytest.raises(ValueError, match=r"reader shaped: its read-out made \[1, 64\] of \[1, 1, 64\]"):
        decoder.run(RewardModel(decoder, shaped)([Answer(["a"])]))
    long = Answer(["word " * 200])
    with pytest.raises(ValueError, match=r"branch 7 is 10.. tokens of the reward model, which allows 512"):
        decoder.run(RewardModel(decoder, "math_shepherd")([long]))
    outside = Reader("outside", lambda *_: Reading([1, 2], [(2,)]), ValueHead())
    with pytest.raises(ValueError, match=r"reader outside: its template gave the positions \[\(2,\)\]"):
        decoder.run(RewardModel(decoder, outside, head=nn.Linear(64, 1))([Answer(["a"])]))
    gc.collect()
    assert decoder.stats().resident_bytes == 0


def test_a_tag_that_merges_is_an_error() -> None:
    tokenizer = byte_tokenizer("ки", "ки\n")
    decoder = decoder_of(tiny_model(), tokenizer)
    with pytest.raises(ValueError, match="the tag 'ки' stands 0 times in a text of 1 steps"):
        RewardModel(decoder, "math_shepherd")


# -- loading


def save(
    folder: Path, model: Any, tokenizer: Any, extra: dict[str, Tensor] | None = None, **config: Any
) -> Path:
    """Saves model and tokenizer, adds tensors to the weights and changes the config."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    if config.pop("prefix", False):
        weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    save_file({**weights, **(extra or {})}, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def loaded_scores(folder: Path, reader: str | None = None) -> tuple[list[float], RewardModel]:
    prm = load_reward_model(folder, reader, dtype="float32", kv_bytes=KV_BYTES)
    return prm.decoder.run(prm.step_scores([Answer(["one", "two"])]))[0], prm


def scores_of(model: Any, tokenizer: Any, reader: str, head: nn.Module | None = None) -> list[float]:
    decoder = decoder_of(model, tokenizer)
    return decoder.run(RewardModel(decoder, reader, head=head).step_scores([Answer(["one", "two"])]))[0]


def test_loads_causal_models_and_classifiers(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("mistral"), byte_tokenizer("ки")
    folder = save(tmp_path / "math-shepherd-tiny", model, tokenizer)
    scores, prm = loaded_scores(folder)
    assert prm.reader.name == "math_shepherd"
    assert scores == pytest.approx(scores_of(model, tokenizer, "math_shepherd"), abs=1e-6)

    tied = tiny_model()
    tied.lm_head.weight = tied.get_input_embeddings().weight
    tied.config.tie_word_embeddings = True
    scores, _ = loaded_scores(save(tmp_path / "tied", tied, tokenizer), "math_shepherd")
    assert scores == pytest.approx(scores_of(tied, tokenizer, "math_shepherd"), abs=1e-6)

    model, tokenizer = tiny_model(auto=SEQUENCE, num_labels=1), byte_tokenizer(chat_template=CHAT)
    scores, prm = loaded_scores(save(tmp_path / "classifier", model, tokenizer))
    assert prm.reader.name == "outcome"
    assert scores == pytest.approx(scores_of(model, tokenizer, "outcome"), abs=1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_loads_heads_that_transformers_has_no_class_for(tmp_path: Path, wrapped: bool) -> None:
    """The code beside the weights would fail if it ran."""
    code = {"auto_map": {"AutoModel": "modeling.Broken", "AutoConfig": "modeling.Broken"}}
    base, tokenizer = tiny_model("qwen2", auto=hf.AutoModel), byte_tokenizer("<extra_0>", chat_template=CHAT)
    head = stack()
    extra = {f"score.{name}": tensor for name, tensor in head.state_dict().items()}
    folder = save(
        tmp_path / "Qwen2.5-Math-PRM-tiny", base, tokenizer, extra,
        prefix=True, architectures=["Qwen2ForProcessRewardModel"], **code,
    )  # fmt: skip
    (folder / "modeling.py").write_text("raise RuntimeError('code of the folder ran')")
    scores, prm = loaded_scores(folder)
    assert prm.reader.name == "qwen2.5_math_prm"
    assert scores == pytest.approx(scores_of(base, tokenizer, "qwen2.5_math_prm", head), abs=1e-6)

    causal, tokenizer, value = tiny_model("qwen2"), byte_tokenizer(), nn.Linear(64, 1)
    extra = {f"v_head.summary.{name}": tensor for name, tensor in value.state_dict().items()}
    folder = save(
        tmp_path / "Skywork-o1-Open-PRM-tiny", causal, tokenizer, extra,
        architectures=["Qwen2ForPrmModel"], **code,
    )  # fmt: skip
    if wrapped:
        weights = load_file(folder / "model.safetensors")
        weights = {n if n.startswith("v_head") else f"pretrained_model.{n}": w for n, w in weights.items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    scores, prm = loaded_scores(folder)
    assert scores == pytest.approx(scores_of(causal.base_model, tokenizer, "skywork_o1", value), abs=1e-6)


def test_loading_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("ки", chat_template=CHAT)
    folder = save(tmp_path / "some-model", tiny_model(), tokenizer)
    with pytest.raises(
        ValueError, match=r"reader: some-model .*does not tell how it is read; expected one of"
    ):
        load_reward_model(folder)
    with pytest.raises(ModelLoadError, match=r"have no head named v_head\.summary\.weight or"):
        load_reward_model(folder, "skywork_o1")
    classifier = save(tmp_path / "classifier", tiny_model(auto=SEQUENCE, num_labels=1), tokenizer)
    with pytest.raises(ModelLoadError, match=r"\(LlamaForSequenceClassification\) lack lm_head.weight"):
        load_reward_model(classifier, "math_shepherd")
    with pytest.raises(ModelLoadError, match=r"there is no folder .*download"):
        load_reward_model(tmp_path / "nothing", "pqm")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelLoadError, match=r"pickled \.bin weights are not read"):
        load_reward_model(folder, "math_shepherd")
    weights.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_reward_model(folder, "pqm")
