"""The shipped readers and ones of one's own, each against a plain forward over the text that it reads."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from primitives import plain_states
from reward_cases import (
    CHAT,
    KV_BYTES,
    MINUS,
    PLUS,
    SEQUENCE,
    TOKEN,
    Answer,
    decoder_of,
    plain_logits,
    random_text,
    stack,
)
from safetensors.torch import load_file, save_file
from tiny_gguf import write_tiny_gguf
from tiny_models import byte_tokenizer, tiny_model
from torch import Tensor, nn
from tts_decode.cli.app import run
from tts_decode.rewards import (
    READERS,
    ClassHead,
    Reader,
    Reading,
    RewardModel,
    TagTemplate,
    TokenSoftmax,
    load_reward_model,
)

pytestmark = pytest.mark.usefixtures("one_thread")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

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


def tagged(
    family: str, tags: tuple[str, ...], choices: list[int], index: int, text: Callable[[str, list[str]], str]
) -> Published:
    """Scores are the share of one choice's probability among all of them, at each first tag."""

    def scores(model: Any, head: Any, ids: list[int]) -> Tensor:
        return plain_logits(model, ids)[:, choices].softmax(-1)[torch.tensor(ids) == 257, index]

    return Published(family, tags, text_ids(text), scores)


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


PUBLISHED = {
    "math_shepherd": tagged(
        "mistral",
        ("ки",),
        [PLUS, MINUS],
        0,
        lambda q, s: f"{q} Step 1: {s[0]} ки\nStep 2: {s[1]} ки\nStep 3: {s[2]} ки",
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
    "er_prm": tagged(
        "llama", (" ки", " +", " -"), [258, 259], 0, lambda q, s: f"{q} {s[0]} ки{s[1]} ки{s[2]} ки"
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
    "versa_prm": tagged(
        "llama",
        (" \n\n\n\n",),
        [MINUS, PLUS],
        1,
        lambda q, s: f"{q} \n\n{s[0]} \n\n\n\n{s[1]} \n\n\n\n{s[2]} \n\n\n\n",
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
    question, steps = random_text(rng, 12), [random_text(rng, 9) for _ in range(3)]
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
    question, steps = random_text(rng, 12), [random_text(rng, 9) for _ in range(4)]
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


# What each model is called on the hub, its config's architecture where transformers has no class for it, and
# how its weights are named: before those of the body, and before those of the head.
FOLDERS: dict[str, tuple[str, str | None, str, str]] = {
    "math_shepherd": ("math-shepherd-mistral-7b-prm", None, "", ""),
    "rebase_llemma": ("Llemma-reward-model", None, "", ""),
    "qwen2.5_math_prm": ("Qwen2.5-Math-PRM-7B", "Qwen2ForProcessRewardModel", "model.", "score."),
    "skywork_o1": ("Skywork-o1-Open-PRM-Qwen-2.5-1.5B", "Qwen2ForPrmModel", "model.", "v_head.summary."),
    "er_prm": ("Llama3.1-Math-PRM", None, "", ""),
    "pqm": ("PQM", None, "pretrained_model.", "v_head.summary."),
    "versa_prm": ("VersaPRM", None, "", ""),
    "outcome": ("Skywork-Reward-Llama-3.1-8B", None, "", ""),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_folder_as_it_is_published_is_read_as_its_authors_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """From the library, its reader told by the name, and by `--scorer FOLDER` of the command."""
    case, rng = PUBLISHED[name], random.Random(name)
    called, architecture, before, before_head = FOLDERS[name]
    model = tiny_model(case.family, auto=case.auto, num_labels=case.labels)
    tokenizer = byte_tokenizer(*case.tags, chat_template=CHAT)
    tokenizer.bos_token = "<eos>"
    torch.manual_seed(1)
    head = case.head() if case.head else None
    folder = tmp_path / called
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if head is not None:
        nn.init.normal_(next(iter(head.parameters())))
        weights = {
            f"{before}{key}": tensor for key, tensor in load_file(folder / "model.safetensors").items()
        }
        weights |= {f"{before_head}{key}": tensor.detach() for key, tensor in head.state_dict().items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if architecture is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))

    prm = load_reward_model(folder, dtype="float32", kv_bytes=KV_BYTES)
    assert prm.reader.name == name
    question, steps = random_text(rng, 12), [random_text(rng, 9) for _ in range(3)]
    expected = case.scores(model, head, case.ids(tokenizer, question, steps)).tolist()
    (scores,) = prm.decoder.run(prm.step_scores([Answer(steps, prompt=question)]))
    assert scores == pytest.approx(expected, abs=5e-5, rel=5e-5)

    if name not in ("math_shepherd", "qwen2.5_math_prm", "outcome"):
        return
    write_tiny_gguf(tmp_path / "tiny.gguf")
    arguments = ["-s", "best_of_n", "-o", "n=2", "--scorer", str(folder), "--json"]
    arguments += ["--max-tokens", "9", "--max-step-tokens", "9"]
    assert run(["search", "hello", "-m", str(tmp_path / "tiny.gguf"), *arguments]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    candidates = result["search"]["candidates"]
    in_its_dtype = load_reward_model(folder, kv_bytes=KV_BYTES)  # bfloat16 on some CPUs
    answers = [Answer([candidate["text"]], prompt="hello") for candidate in candidates]
    of_the_library = [told[-1] for told in in_its_dtype.decoder.run(in_its_dtype.step_scores(answers))]
    assert [candidate["score"] for candidate in candidates] == pytest.approx(of_the_library, abs=1e-3)


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


# -- readers of one's own


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
