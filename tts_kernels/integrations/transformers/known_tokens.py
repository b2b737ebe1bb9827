"""Compares prompts and embeddings with the tokens that the rows of a `TreeCache` hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ... import KVTree
from .errors import UnsupportedError
from .origins import UNKNOWN

PADDING = -1  # in place of a token's id


def held_tokens(tree: KVTree, branches: Sequence[int], lengths: Sequence[int], columns: int) -> Tensor:
    """Returns ids, PADDING or UNKNOWN, of the branches' first tokens: int64 [rows, columns] on the CPU."""
    held = torch.full((len(branches), columns), PADDING)
    for row, branch, length in zip(held, branches, lengths, strict=True):
        row[columns - length :] = torch.from_numpy(tree.tokens(branch)[:length])
    return held


def refuse_other_tokens(held: Tensor, ids: Tensor, mask: Tensor | None) -> None:
    """Raises UnsupportedError if prompts begin with other tokens than the rows they continue.

    held: of `held_tokens`. ids: [n, more than the columns], each for len(held) // n rows; mask: the same,
    None: no padding.
    """
    repeats, columns = len(held) // len(ids), held.shape[1]
    got = ids[:, :columns].cpu().repeat_interleave(repeats, 0)
    other = (got != held) & (held != PADDING)
    if mask is not None:
        other &= mask[:, :columns].cpu().repeat_interleave(repeats, 0) != 0
    if not other.any():
        return
    column, row = other.T.nonzero()[0].tolist()
    _refuse_unknown("input_ids", held, row, column)
    raise UnsupportedError(
        f"input_ids: got token {got[row, column]} in column {column} of row {row // repeats}, expected "
        f"{held[row, column]}, which row {row} of the cache holds there; pass the prompts that it was filled "
        "with and what comes behind them (after beam search the beams that ran last), or call cache.reset() "
        f"before others, or cache.crop({column} - cache.get_seq_length()) to keep what is before that column"
    )


def refuse_other_embeddings(held: Tensor, embeds: Tensor, embedding: nn.Module) -> None:
    """Raises UnsupportedError if embeddings do not begin with those of the tokens that the rows hold.

    held: of `held_tokens`. embeds: [n, more than the columns, hidden], each for len(held) // n rows.
    embedding: of the model.
    """
    repeats = len(held) // len(embeds)
    for row, tokens in enumerate(held):
        of_ids, (columns,) = (tokens >= 0) & (tokens != UNKNOWN), (tokens != PADDING).nonzero(as_tuple=True)
        with torch.no_grad():
            expected = embedding(tokens.where(of_ids, 0).to(embeds.device))
        got = embeds[row // repeats, : len(tokens)]
        agree = of_ids & (got.shape == expected.shape and (got == expected).all(-1).cpu())
        for column in columns[~agree[columns]].tolist():
            _refuse_unknown("inputs_embeds", held, row, column)
            raise UnsupportedError(
                f"inputs_embeds: got others in column {column} of row {row // repeats} than those of token "
                f"{tokens[column]}, which row {row} of the cache holds; pass "
                "model.get_input_embeddings()(ids) of what it was filled with and what comes behind, or call "
                "cache.reset() before others"
            )


def refuse_other_positions(held: Tensor, tokens: Tensor, positions: Tensor) -> None:
    """Raises UnsupportedError if position_ids do not begin with those of the rows.

    held: int64 [rows, columns]. tokens: bool, the same shape, False for padding. positions: [n or 1, S].
    """
    columns = held.shape[1]
    repeats = len(held) // len(positions)
    got = positions[:, :columns].cpu().repeat_interleave(repeats, 0)
    other = ((got != held) & tokens).nonzero().tolist()
    if other:
        row, column = other[0]
        raise UnsupportedError(
            f"position_ids: got {got[row, column]} in column {column} of row {row // repeats}, expected "
            f"{held[row, column]}, where row {row} of the cache holds its token; leave position_ids out, "
            "or call cache.reset()"
        )


def _refuse_unknown(name: str, held: Tensor, row: int, column: int) -> None:
    if held[row, column] == UNKNOWN:
        raise UnsupportedError(
            f"{name}: got prompts from their first token on, but the cache does not know which it holds in "
            f"column {column} of its row {row}, as they came by inputs_embeds, or inside a function that was "
            "compiled around the model; pass the new tokens alone as input_ids, with the attention_mask of "
            "all, or call cache.reset()"
        )
