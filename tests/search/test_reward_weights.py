"""Scores are of a reward model's weights as they are, and weights that change while it reads an error."""

from __future__ import annotations

import asyncio

import pytest
import torch
from primitives import plain_states
from reward_cases import MINUS, PLUS, TOKEN, Answer, decoder_of, plain_logits
from tiny_models import byte_tokenizer, tiny_model
from torch import nn
from tts_decode import StaleKVError
from tts_decode.rewards import ClassHead, Reader, RewardModel, TagTemplate, TokenSoftmax, ValueHead

pytestmark = pytest.mark.usefixtures("one_thread")


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
