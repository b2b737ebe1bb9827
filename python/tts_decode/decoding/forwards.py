"""One forward of the model over what the requests of a batch feed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..model.host_steps import StepInputs
from ..model.sparse import SparseReads
from .cost_meter import CostMeter
from .live_path import LivePath
from .requests import Feed
from .runtime import UNMATCHED, Runtime
from .sparse_batch import reads_of


class Forwards:
    """Runs batches and counts them.

    Attributes:
        steps: forwards so far. tokens: fed in them. meter: their cost.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.steps = 0
        self.tokens = 0
        shape = replace(runtime.engine.shape, kv_bytes=runtime.pool.dtype.itemsize)
        self.meter = CostMeter(shape, runtime.pool.page_size)

    def run(self, batch: list[Feed]) -> Tensor:
        """Runs one forward for all feeds; hands out its rows, returns all logits (float32 [rows, vocab])."""
        runtime = self._runtime
        tree = runtime.tree
        paths: list[LivePath] = []
        ids: list[int] = []
        counts: list[int] = []
        for feed in batch:
            paths.append(feed.request.path)
            ids.append(feed.request.path.id)
            counts.append(len(feed.tokens))
        reads = None if runtime.sparse is None else reads_of(batch, runtime.sparse, runtime.pool.page_size)
        for path in paths:
            path.last_use = self.steps
        appended = tree.append(ids, _tree_tokens(batch, reads))
        runtime.kv.note_peak()
        try:
            tables, lengths = tree.block_tables(ids)
            tokens: list[int] = []
            positions: list[int] = []
            embeds: list[Tensor] = []
            rows: list[int] = []  # tokens whose logits are needed
            shares: list[int] = []  # of these, by feed
            hidden = False
            kept_rows: list[int] = []
            kept_layers: set[int] = set()
            for path, feed, count in zip(paths, batch, counts, strict=True):
                wanted = feed.request.logit_rows(count)
                rows.extend(range(len(tokens) + wanted.start, len(tokens) + wanted.stop))
                tokens.extend(feed.tokens)
                places = range(path.kv_length, path.kv_length + count)
                positions.extend(places)
                if min(feed.tokens) < 0:
                    pairs = zip(places, feed.tokens, strict=True)
                    embeds += [feed.request.embeds(place) for place, token in pairs if token < 0]
                hidden = hidden or feed.request.needs_hidden
                shares.append(len(wanted))
                feed.tokens_end = len(tokens)
                if feed.request.layers:
                    kept_rows.append(len(tokens) - 1)
                    kept_layers.update(feed.request.layers)
            layers = tuple(sorted(kept_layers))
            step = StepInputs(
                tokens,
                positions,
                rows,
                appended.slots,
                appended.copies,
                tables,
                lengths,
                np.array(counts, dtype=np.int32),
                reads,
                torch.stack(embeds) if embeds else None,
                tuple(kept_rows),
                layers,
            )
            output = runtime.steps.run(step, hidden=hidden)
        except BaseException:
            for path in paths:
                tree.truncate(path.id, path.kv_length)
            raise
        self.meter.add([path.budget for path in paths], step, output.pages, output.sparse)
        self.steps += 1
        self.tokens += len(tokens)
        kept = iter(() if output.layers is None else output.layers)
        token = 0
        for feed, logits in zip(batch, output.logits.split_with_sizes(shares), strict=True):
            if feed.request.layers:
                feed.request.take_layers(next(kept)[[layers.index(layer) for layer in feed.request.layers]])
            states = None if output.hidden is None else output.hidden[token : feed.tokens_end]
            if output.masses is not None:
                feed.request.path.add_mass(output.masses[token : feed.tokens_end].sum(0).numpy())
            try:
                feed.request.fed(len(feed.tokens), logits, states)
            except Exception as error:
                feed.request.fail(error)
            token = feed.tokens_end
        return output.logits


def _tree_tokens(batch: list[Feed], reads: SparseReads | None) -> list[list[int]]:
    """Returns the ids under which the tree keeps the tokens of each feed.

    No prompt matches embeddings, or tokens that read only part of the pages: in a prompt they would get other
    keys and values.
    """
    if reads is None:
        return [
            feed.tokens if min(feed.tokens) >= 0 else [t if t >= 0 else UNMATCHED for t in feed.tokens]
            for feed in batch
        ]
    private = iter(reads.private.tolist())
    return [[UNMATCHED if next(private) or t < 0 else t for t in feed.tokens] for feed in batch]
