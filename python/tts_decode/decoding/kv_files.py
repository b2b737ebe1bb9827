"""KV of pins and branches in a file, for later processes with the same model.

The file is in the safetensors format. A page that several prefixes hold is stored once.

    pages    uint8 [pages, page_bytes], as `KVPool.read_pages` returns them
    tokens   int32, the tokens of all prefixes, concatenated
    lengths  int32 [prefixes], in tokens
    columns  int32, the pages of all prefixes, concatenated, as rows of `pages`

Its metadata has `format`, `model` (see `_model_digest`) and `digest`, the SHA-256 of these four.
"""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import KVFileError
from ..model.host_steps import StepInputs
from .kv_budget import Pin
from .runtime import UNMATCHED, Runtime

_FORMAT = "tts-decode KV 1"
_NAMES = ("pages", "tokens", "lengths", "columns")
_PROBE = 16  # tokens


def save_kv(runtime: Runtime, path: Path, holders: Sequence[int]) -> None:
    """Implements `TreeDecoder.save_kv`. holders: branches and pins in the tree."""
    runtime.refuse_under_mesh("save_kv")
    if not holders:
        raise ValueError("prefixes: got none, expected at least one Branch or Pin")
    tree = runtime.tree
    tokens = [_matchable(runtime, holder) for holder in holders]
    rows: dict[int, int] = {}  # row of `pages`, by a page's number in the tree
    columns: list[int] = []
    for holder, own in zip(holders, tokens, strict=True):
        table = tree.block_tables([holder])[0][0, : -(-len(own) // tree.page_size)]
        columns += [rows.setdefault(page, len(rows)) for page in table.tolist()]
    tensors = {
        "pages": runtime.kv.read_pages(runtime.pool, np.array(list(rows), np.int32)),
        "tokens": torch.tensor([token for own in tokens for token in own], dtype=torch.int32),
        "lengths": torch.tensor([len(own) for own in tokens], dtype=torch.int32),
        "columns": torch.tensor(columns, dtype=torch.int32),
    }
    told = {"format": _FORMAT, "model": _model_digest(runtime), "digest": _digest(tensors)}
    beside = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        _refuse_special(path)
        beside.touch()
        mode = beside.stat().st_mode  # by the process's umask; safetensors may write for the owner alone
        save_file(tensors, beside, told)
        beside.chmod(mode)
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        beside.replace(path)
    except (OSError, SafetensorError) as cause:
        raise KVFileError(f"{path} cannot be written: {cause}") from cause
    finally:
        with suppress(OSError):  # it was renamed already, or never created
            beside.unlink()


def load_kv(runtime: Runtime, path: Path) -> list[Pin]:
    """Implements `TreeDecoder.load_kv`."""
    runtime.refuse_under_mesh("load_kv")
    tensors, model = _read(path)
    if not _fits(tensors, runtime):
        raise KVFileError(
            f"{path}: its pages, tokens and lengths do not fit together, or do not fit this model; save it "
            "again with this decoder"
        )
    if model != _model_digest(runtime):
        raise KVFileError(
            f"{path}: its KV was computed by another model, or by other arithmetic: dtype, form of the "
            "weights, instruction set or threads; compute the prompts again and save them with this decoder"
        )
    pins: list[Pin] = []
    try:
        for tokens, columns in _prefixes(tensors, runtime.tree.page_size):
            pins.append(_place(runtime, tokens, tensors["pages"][columns.long()]))
    except BaseException:
        for pin in pins:
            pin.release()
        raise
    return pins


def _place(runtime: Runtime, tokens: list[int], rows: Tensor) -> Pin:
    """Pins a prefix; shares what is resident of it. rows: uint8 [pages, page_bytes], all of its pages."""
    tree, kv = runtime.tree, runtime.kv
    found = tree.match(tokens)
    full = 0 if found is None else found[1] // tree.page_size
    branch = tree.create() if found is None else tree.fork(found[0], 1, at=full * tree.page_size)[0]
    try:
        new = tokens[full * tree.page_size :]
        if needed := kv.make_room(branch, len(new)):
            raise kv.out_of_pages(branch, needed)
        tree.append([branch], [new])
        kv.note_peak()
        pages = tree.block_tables([branch])[0][0, full:]
        runtime.pool.write_pages(torch.from_numpy(pages), rows[full:])
        return kv.pin(branch, tokens)
    finally:
        tree.release(branch)


def _matchable(runtime: Runtime, holder: int) -> list[int]:
    """Returns the first tokens of a branch or pin, as far as a prompt finds them.

    They end before the first token that was evicted, compacted, read sparsely or given as an embedding.
    """
    tokens = runtime.tree.tokens(holder)
    ends = np.flatnonzero((tokens < 0) | (tokens == UNMATCHED))
    own: list[int] = tokens[: ends[0] if len(ends) else None].tolist()
    if not own:
        raise ValueError(f"prefixes: got one of which no first token can be found again, id {holder}")
    return own


def _fits(tensors: dict[str, Tensor], runtime: Runtime) -> bool:
    """Whether the tensors of a file fit this decoder as they are."""
    pages, tokens, lengths, columns = (tensors[name] for name in _NAMES)
    numbers = (tokens, lengths, columns)
    if pages.dtype != torch.uint8 or pages.ndim != 2 or pages.shape[1] != runtime.pool.page_bytes:
        return False
    if any(values.dtype != torch.int32 or values.ndim != 1 or not len(values) for values in numbers):
        return False
    bounds = (runtime.engine.config.vocab_size, len(tokens) + 1, len(pages))
    if any(int(v.min()) < 0 or int(v.max()) >= bound for v, bound in zip(numbers, bounds, strict=True)):
        return False
    held = -(-lengths.long() // runtime.tree.page_size)
    return int(lengths.min()) > 0 and int(lengths.sum()) == len(tokens) and int(held.sum()) == len(columns)


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Returns the checked tensors of a file, and the digest of its model."""
    try:
        _refuse_special(path)
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            if told.get("format") != _FORMAT:
                raise KVFileError(
                    f"{path}: got format {told.get('format')!r}, expected {_FORMAT!r}; give a file of save_kv"
                )
            tensors = {name: file.get_tensor(name) for name in _NAMES}
    except (OSError, SafetensorError) as cause:
        raise KVFileError(f"{path} is no file of save_kv, or is damaged: {cause}") from cause
    if told.get("digest") != _digest(tensors):
        raise KVFileError(f"{path} is damaged: its SHA-256 is another one than it says; save it again")
    return tensors, told.get("model", "")


def _refuse_special(path: Path) -> None:
    """Raises OSError for a folder, device or pipe: a read may never end, a write would replace it."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a plain file")


def _prefixes(tensors: dict[str, Tensor], page_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yields the tokens and rows of `pages` of each prefix."""
    lengths = tensors["lengths"].tolist()
    tokens = torch.split(tensors["tokens"], lengths)
    columns = torch.split(tensors["columns"], [-(-length // page_size) for length in lengths])
    for own, rows in zip(tokens, columns, strict=True):
        yield own.tolist(), rows


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in _NAMES:
        values = tensors[name]
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _model_digest(runtime: Runtime) -> str:
    """Returns the SHA-256 of the K and V of fixed tokens as this decoder computes them.

    It covers the arithmetic and every layer except the end of the last one.
    """
    tree, pool = runtime.tree, runtime.pool
    branch = tree.create()
    try:
        if needed := runtime.kv.make_room(branch, _PROBE):
            raise runtime.kv.out_of_pages(branch, needed)
        tokens = [place * 7919 % runtime.engine.config.vocab_size for place in range(_PROBE)]
        new = tree.append([branch], [tokens])
        tables, lengths = tree.block_tables([branch])
        counts = np.array([_PROBE], dtype=np.int32)
        step = StepInputs(tokens, list(range(_PROBE)), [], new.slots, new.copies, tables, lengths, counts)
        runtime.steps.run(step, hidden=False)
        rows = pool.read_pages(torch.from_numpy(tables[0, : -(-_PROBE // tree.page_size)]))
    finally:
        tree.release(branch)
    kind = f"{pool.layout} {pool.page_size} {[list(pool.k_pages.shape[::2]), pool.dtype]} {rows.shape}"
    return hashlib.sha256(kind.encode() + rows.cpu().numpy().tobytes()).hexdigest()
