"""Arguments of `TreeCache`'s methods, checked before anything changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...checks import dtype_of, instance

_INDEX = torch.int32, torch.int64


def check_model(model: Any) -> None:
    """Raises TypeError unless it has a model of transformers below its head."""
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "base_model", None), nn.Module):
        instance("model", model, PreTrainedModel, "pass the one that generates")


def check_vocabulary(model: Any, input_ids: Tensor) -> None:
    """Raises ValueError unless the model has all ids [B, S]."""
    size = model.get_input_embeddings().num_embeddings
    outside = input_ids[(input_ids < 0) | (input_ids >= size)]
    if len(outside):
        raise ValueError(
            f"input_ids: got token {int(outside[0])}, expected 0 to {size - 1}, as the model has"
        )


def check_prompts(input_ids: Any, attention_mask: Any) -> None:
    """Raises TypeError or ValueError unless both are tensors [B, S], or there is no mask."""
    given = {"input_ids": input_ids} | ({} if attention_mask is None else {"attention_mask": attention_mask})
    for name, value in given.items():
        instance(name, value, Tensor, 'pass return_tensors="pt" to the tokenizer')
        if value.dim() != 2 or value.shape != input_ids.shape:
            raise ValueError(f"{name}: got {list(value.shape)}, expected [B, S], the same for both")
    dtype_of("input_ids", input_ids.dtype, _INDEX)
    if not input_ids.numel():
        raise ValueError(f"input_ids: got {list(input_ids.shape)}, expected [B, S], a token or more")


def check_embeddings(inputs_embeds: Any) -> None:
    """Raises TypeError or ValueError unless it is a tensor [B, S, hidden]."""
    instance("inputs_embeds", inputs_embeds, Tensor)
    if inputs_embeds.dim() != 3 or not inputs_embeds.numel():
        raise ValueError(
            f"inputs_embeds: got {list(inputs_embeds.shape)}, expected [B, S, hidden], a token or more"
        )


def row_indices(name: str, indices: Any) -> list[int]:
    """Of a tensor [N] of integers."""
    instance(name, indices, Tensor)
    dtype_of(name, indices.dtype, _INDEX)
    if indices.dim() != 1:
        raise ValueError(f"{name}: got {list(indices.shape)}, expected [N]")
    found: list[int] = indices.tolist()
    return found


def selected_rows(name: str, indices: Any, rows: int) -> list[int]:
    """Of a tensor [N] of integers, or of a bool tensor [rows]."""
    if not isinstance(indices, Tensor) or indices.dtype != torch.bool:
        return row_indices(name, indices)
    if list(indices.shape) != [rows]:
        raise ValueError(f"{name}: got a mask of {list(indices.shape)}, expected [{rows}], one entry a row")
    return row_indices(name, indices.nonzero().flatten())
