"""The parts of one decoder that its branches run on."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from tts_kernels import KVPool, KVTree

from ..core.constraints.guide import Guide
from ..core.constraints.protocol import Constraint
from ..core.prompts import PromptReader
from ..errors import PromptTooLongError
from ..model.device_steps import DeviceSteps
from ..model.hf import HFEngine
from ..model.host_steps import HostSteps
from ..model.parallel.steps import FollowerSteps, LeaderSteps
from ..model.sparse import SparseConfig
from .compression_rule import Compression
from .kv_budget import KVShare
from .offload import KVHolder

_log = logging.getLogger(__name__)

# Id in the tree of a token that no prompt may match: above every vocabulary, within int32.
UNMATCHED = 2**31 - 1


@dataclass
class Runtime:
    """The parts of a decoder, made by `TreeDecoder`.

    Attributes:
        engine: the model's forward. steps: runs it for a batch. tree, pool: the KV tree and its storage.
        kv: the decoder's share of its budget. reader: text to token ids. sparse: None: attention is dense.
        max_batch_tokens: maximum number of tokens in one forward. max_positions: None: no limit is known.
        track_mass, compress, eos_token_ids, keep_hidden: same as for `TreeDecoder`; the last two may be set.
        holders: the live branches. weights_epoch: of the weights that computed their KV.
    """

    engine: HFEngine
    steps: HostSteps | DeviceSteps | LeaderSteps | FollowerSteps
    tree: KVTree
    pool: KVPool
    kv: KVShare
    tokenizer: Any
    reader: PromptReader
    sparse: SparseConfig | None
    max_batch_tokens: int
    max_positions: int | None
    eos_token_ids: frozenset[int]
    weights_epoch: int
    track_mass: bool = False
    compress: Compression | None = None
    keep_hidden: int = 0
    holders: WeakSet[KVHolder] = field(default_factory=WeakSet)

    def follow_weights(self) -> None:
        """Drops everything computed with weights that are no longer the model's."""
        epoch = self.engine.weights.check()
        if epoch != self.weights_epoch:
            self.weights_epoch = epoch
            _log.info("the model's weights changed: pins go, branches are stale until they are recomputed")
            self.kv.drop_pins()
            for holder in list(self.holders):
                holder.lose_kv()

    def refuse_under_mesh(self, what: str) -> None:
        """Raises ValueError if ranks hold the model together: they do not support this."""
        if isinstance(self.steps, LeaderSteps | FollowerSteps):
            raise ValueError(
                f"{what}: got a decoder with device_mesh, expected one without: each rank holds the KV "
                "of its own heads alone"
            )

    def guide(self, constraint: Constraint | None, tokens: Sequence[int] = ()) -> Guide | None:
        """Returns a path's position in the constraint after these tokens after its prompt; None without one.

        Raises:
            ConstraintError: it is malformed, or the tokens violate it.
        """
        if constraint is None:
            return None
        guide = Guide.start(constraint, self.tokenizer, self.eos_token_ids)
        guide.follow(tokens)
        return guide

    def place(self, tokens: list[int], length: int, share_limit: int | None) -> tuple[int, int]:
        """Makes a branch of the tree for a prompt; also returns how many of its tokens are already resident.

        tokens: the prompt, up to its first embedding. length: of the whole prompt. share_limit: maximum
        number of shared tokens.
        """
        found = self.tree.match(self.shareable(tokens, length)[:share_limit])
        if found is None:
            return self.tree.create(), 0
        (branch_id,) = self.tree.fork(found[0], 1, at=found[1])
        self.kv.used(tokens[: found[1]])
        return branch_id, found[1]

    def shareable(self, tokens: list[int], length: int) -> list[int]:
        """Returns the tokens that a prompt may share with others.

        With an LM head they exclude its last token, which is fed for its logits. tokens, length: same as for
        `place`.
        """
        return tokens[: length - 1] if self.engine.has_lm_head else tokens

    def positions_left(self, length: int) -> float:
        """Returns how many tokens the model takes after `length` tokens; inf: no limit is known."""
        return math.inf if self.max_positions is None else self.max_positions - length

    def check_prompt(self, tokens: list[int]) -> None:
        if not tokens:
            raise ValueError("prompt: got no tokens, expected at least one")
        if self.positions_left(len(tokens)) < 0:
            raise PromptTooLongError(
                f"prompt has {len(tokens)} tokens, but the model allows {self.max_positions}"
                f"{self.engine.limit_note}: shorten it"
            )
        pages, page_bytes = -(-len(tokens) // self.pool.page_size), self.pool.page_bytes
        if pages > self.pool.num_pages:
            raise PromptTooLongError(
                f"prompt has {len(tokens)} tokens and needs {pages * page_bytes} bytes of KV, but kv_bytes "
                f"holds {self.pool.num_pages * page_bytes}: raise kv_bytes or shorten it"
            )
