"""Maps the hidden states at the read positions to scores.

A read-out is bound to a model once. The result, or any function, takes the last hidden states (after the
final norm) at the p positions of n steps, float32 [n, p, hidden] on the CPU, and returns [n] scores. The
read-outs below use the last position of each step and compute in float32, whatever the model's dtype is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..model.quantised_modules import weight_rows
from .templates import single_token

Head = Callable[[Tensor], Tensor]
"""float32 [n, p, hidden] -> [n]"""


@runtime_checkable
class ReadOut(Protocol):
    """A read-out that needs parts of the model: its vocabulary head, or its own head."""

    def bind(self, model: Any, tokenizer: Any, head: torch.nn.Module | None) -> Head:
        """Binds the read-out to a model.

        head: maps hidden states to logits or values; None: the model's own, by its usual name.

        Raises TypeError for a model of another kind, ValueError for a tokenizer or head that does not fit.
        """
        ...


@dataclass(frozen=True)
class TokenSoftmax:
    """The probability of one token in a softmax over the logits of a few tokens of the vocabulary.

    Attributes:
        tokens: their texts, each one token of the model.
        index: the token whose probability is the score.
    """

    tokens: tuple[str, ...]
    index: int = 0

    def bind(self, model: Any, tokenizer: Any, head: torch.nn.Module | None) -> Head:
        _require_index(self.index, len(self.tokens), "tokens")
        ids = [single_token(tokenizer, text) for text in self.tokens]
        logits = _vocabulary_logits(model, ids)
        return lambda hidden: logits(hidden[:, -1]).softmax(-1)[:, self.index]


@dataclass(frozen=True)
class VocabularyMean:
    """The sigmoid of the mean logit of the whole vocabulary, as REBASE's reward model was trained."""

    def bind(self, model: Any, tokenizer: Any, head: torch.nn.Module | None) -> Head:
        output, cap = _lm_head(model)
        if cap is not None:
            raise ValueError(
                f"decoder: {type(model).__name__} caps its logits, whose mean is not served; this reader is "
                "for another model"
            )
        # The mean of the products equals the product with the mean.
        weight = output.weight.detach().mean(0, dtype=torch.float32).cpu()
        bias = getattr(output, "bias", None)
        offset = 0.0 if bias is None else float(bias.detach().float().mean())
        return lambda hidden: (hidden[:, -1] @ weight + offset).sigmoid()


@dataclass(frozen=True)
class ClassHead:
    """A classification head: the probability of a class, or its raw logit.

    Attributes:
        index: the class.
        softmax: whether to apply a softmax over the classes; without it the score is unbounded.
    """

    index: int
    softmax: bool = True

    def bind(self, model: Any, tokenizer: Any, head: torch.nn.Module | None) -> Head:
        module = _own_head(model, head, ("score", "classifier"))
        _require_index(self.index, _width(module), "classes")

        def read(hidden: Tensor) -> Tensor:
            logits: Tensor = module(hidden[:, -1])
            return (logits.softmax(-1) if self.softmax else logits)[:, self.index]

        return read


@dataclass(frozen=True)
class ValueHead:
    """A head with one output: a value, through a sigmoid or unchanged (then it only ranks)."""

    sigmoid: bool = False

    def bind(self, model: Any, tokenizer: Any, head: torch.nn.Module | None) -> Head:
        module = _own_head(model, head, ("v_head", "value_head", "score"))
        if _width(module) != 1:
            raise ValueError(f"head: got one with {_width(module)} outputs, expected a value head with 1")

        def read(hidden: Tensor) -> Tensor:
            values: Tensor = module(hidden[:, -1])[:, 0]
            return values.sigmoid() if self.sigmoid else values

        return read


def _vocabulary_logits(model: Any, ids: list[int]) -> Head:
    """Maps float32 [n, hidden] to [n, len(ids)]: the model's own logits of these tokens."""
    output, cap = _lm_head(model)
    weight = weight_rows(output, ids)
    bias = getattr(output, "bias", None)
    bias = None if bias is None else bias.detach()[ids].float().cpu()

    def logits(hidden: Tensor) -> Tensor:
        values = torch.nn.functional.linear(hidden, weight, bias)
        return values if cap is None else cap * torch.tanh(values / cap)

    return logits


def _lm_head(model: Any) -> tuple[Any, float | None]:
    """Returns the model's LM head and the soft cap of its logits."""
    output = model.get_output_embeddings()
    if output is None:
        raise TypeError(
            f"decoder: {type(model).__name__} has no LM head, but this reader reads the logits of tokens: "
            "load the model with AutoModelForCausalLM"
        )
    config = model.config.get_text_config(decoder=True)
    return output, getattr(config, "final_logit_softcapping", None)


def _own_head(model: Any, head: torch.nn.Module | None, names: tuple[str, ...]) -> torch.nn.Module:
    """Returns a copy of the head in float32 on the CPU."""
    for name in names:
        head = getattr(model, name, None) if head is None else head
    if not isinstance(head, torch.nn.Module):
        raise TypeError(
            f"decoder: {type(model).__name__} has no head named {' or '.join(names)}, which this reader "
            "reads: load the model with its head, or pass head="
        )
    features = next((m.in_features for m in head.modules() if isinstance(m, torch.nn.Linear)), None)
    hidden = model.config.get_text_config(decoder=True).hidden_size
    if features != hidden:
        raise ValueError(
            f"head: {type(head).__name__} takes {features} features, expected linear layers over the model's "
            f"hidden size of {hidden}"
        )
    return copy.deepcopy(head).float().cpu().eval().requires_grad_(False)


def _width(head: torch.nn.Module) -> int:
    """Returns the number of outputs of a linear layer or of a stack that ends in one."""
    return [module.out_features for module in head.modules() if isinstance(module, torch.nn.Linear)][-1]


def _require_index(index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise ValueError(f"index: got {index}, expected 0..{count - 1}, as there are {count} {what}")
