"""Answers as a scorer sees them, decoders of reward models, and plain forwards over their texts."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from tts_decode import Step, TreeDecoder
from tts_decode.core.prompts import question_in

KV_BYTES = 4 << 20
CHAT = "{% for m in messages %}<{{ m.role }}>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
PLUS, MINUS = ord("+"), ord("-")
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


def random_text(rng: random.Random, count: int, letters: str = "abc+-0 ") -> str:
    """Random text that neither begins nor ends with a blank."""
    return "x" + "".join(rng.choice(letters) for _ in range(count)) + "y"


def decoder_of(model: Any, tokenizer: Any, **options: Any) -> TreeDecoder:
    return TreeDecoder(model, tokenizer, **{"kv_bytes": KV_BYTES, **options})


def plain_logits(model: Any, ids: list[int]) -> Tensor:
    """float32 [T, outputs]: of one forward over the whole text."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def stack() -> nn.Module:
    """A head of two layers over the tiny model's 64 features, with two outputs."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
