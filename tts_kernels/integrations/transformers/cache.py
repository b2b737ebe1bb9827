"""The cache to pass to `model.generate`."""

from __future__ import annotations

from threading import get_ident
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from ... import KVPool, KVTree
from ...checks import any_integer, choice, flag, instance, integer
from ...pool import LAYOUTS
from .cache_arguments import (
    check_embeddings,
    check_model,
    check_prompts,
    check_vocabulary,
    row_indices,
    selected_rows,
)
from .eager import eager
from .errors import UnsupportedError
from .known_tokens import held_tokens, refuse_other_embeddings, refuse_other_positions, refuse_other_tokens
from .new_kv import NewKV
from .rows import Rows
from .support import (
    SMALLEST,
    least_heads,
    refuse_config,
    refuse_head_size_of,
    refuse_less_than_a_page,
    refuse_other_rows,
)
from .versions import cache_argument


class CacheUse(NamedTuple):
    """The contents of a `TreeCache`.

    Attributes:
        pages, bytes: of all rows, shared pages counted once.
        peak_pages, peak_bytes: the most since the cache was made.
        tokens: stored ones.
        row_tokens: the sum over the rows, as if nothing were shared.
    """

    pages: int
    bytes: int
    peak_pages: int
    peak_bytes: int
    tokens: int
    row_tokens: int


class TreeLayer(CacheLayerMixin):
    """The interface of one layer of a `TreeCache` to transformers."""

    is_croppable = True
    is_sliding = False  # a window hides tokens, the cache keeps them
    supports_early_init = False

    def __init__(self, rows: Rows, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows, self._index = rows, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: pages are made in the first forward."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[NewKV, NewKV]:  # type: ignore[override]
        """Returns the new tokens twice, for attn_implementation="tts", which stores them."""
        new = NewKV(self._rows, self._index, key_states, value_states)
        return new, new

    @eager
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if query_length == 0:  # the prompt is no longer than the content of the cache
            raise UnsupportedError(
                f"input_ids: got no new token behind the {self._rows.columns} that the cache holds of each "
                "row, expected at least one; call cache.reset() before another prompt, or the same again"
            )
        return self._rows.columns + query_length, 0

    @eager
    def get_seq_length(self) -> int:
        return self._rows.columns

    def get_max_length(self) -> int:
        return -1


class TreeCache(Cache):
    """A cache for transformers whose rows are branches of one tree: shared parts are stored and read once.

    Pass it to `model.generate(..., cache=TreeCache(model.config))` with a model of attn_implementation="tts"
    (`register`). Rows that begin with the same tokens are detected in the first forward and share whole
    pages; with `prefill` the prompt is also computed once. Beam search forks and releases branches; other
    caches copy tensors.

    Args:
        config: of the model.
        kv_bytes: for pages; default: a quarter of the memory, on a GPU three quarters of what is free. On the
            CPU the system commits memory as pages are first written.
        layout: of the pages, same as for `KVPool`; default: "packed" on the CPU, "HND" elsewhere.
        share: whether rows that begin alike share pages from the first forward on.

    It supports models of decoder layers with causal attention, also with a window or a soft cap, in float32
    and bfloat16. Batches are padded on the left.

    Raises:
        UnsupportedError: the model has an unsupported feature; the message names it. Forwards raise it too.
        OutOfPagesError: in a forward that needs more pages than are free. The cache is as it was before.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        kv_bytes: int | None = None,
        layout: str | None = None,
        share: bool = True,
    ) -> None:
        instance("config", config, PreTrainedConfig, "pass model.config")
        refuse_config(config)
        config = config.get_text_config(decoder=True)
        refuse_config(config)
        if layout is not None:
            choice("layout", layout, LAYOUTS)
        refuse_head_size_of(config, layout)
        budget = None if kv_bytes is None else integer("kv_bytes", kv_bytes, 1)
        if budget is not None:
            refuse_less_than_a_page(budget, config.num_hidden_layers, *least_heads(config), SMALLEST)
        self._rows = Rows(config.num_hidden_layers, budget, layout, flag("share", share))
        super().__init__(layers=[TreeLayer(self._rows, index) for index in range(config.num_hidden_layers)])

    def __repr__(self) -> str:
        if self._rows.in_forward:  # a debugger may be looking at it
            return f"TreeCache({len(self._rows.branches)} rows in a forward, or in one that was interrupted)"
        use = self.use()
        rows = f"{self.batch_size} rows of {self._rows.columns} tokens"
        return f"TreeCache({rows} in {use.pages} pages, {use.bytes} bytes)"

    def __reduce_ex__(self, _: Any) -> NoReturn:
        raise UnsupportedError(
            "cache: got a TreeCache to copy or to pickle, which its pages are too large for; fork its rows "
            "with batch_repeat_interleave, and drop what a use added with crop"
        )

    @eager
    def update(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        return super().update(*args, **options)

    @property
    def tree(self) -> KVTree | None:
        """The tree of the rows; None before the first forward."""
        self._rows.settle(get_ident())
        return self._rows.tree

    @property
    def pool(self) -> KVPool | None:
        """The pages; None before the first forward."""
        return self._rows.pool

    @property
    def branches(self) -> list[int]:
        """The branch of each row."""
        self._rows.settle(get_ident())
        return list(self._rows.branches)

    @property
    def batch_size(self) -> int:
        return len(self.branches)

    def use(self) -> CacheUse:
        """Pages and bytes of the rows, now and at their peak."""
        if self.tree is None or self.pool is None:
            return CacheUse(0, 0, 0, 0, 0, 0)
        stats, page = self.tree.stats(), self.pool.page_bytes
        return CacheUse(
            stats.resident_pages,
            stats.resident_pages * page,
            stats.peak_pages,
            stats.peak_pages * page,
            stats.unique_tokens,
            stats.logical_tokens,
        )

    def prefill(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        copies: int = 1,
    ) -> None:
        """Computes all but the last token of each prompt once, and forks each row into `copies`.

        `generate` repeats prompts num_return_sequences or num_beams times before it computes them. After this
        call, with the same number of copies, it computes only their last token:

            cache.prefill(model, input_ids, copies=64)
            model.generate(input_ids, cache=cache, num_return_sequences=64, do_sample=True)

        Before transformers 5.24 the argument of `generate` is called past_key_values.

        Args:
            model: of attn_implementation="tts".
            input_ids: int64 [B, S].
            attention_mask: [B, S], 0 for padding, which is on the left.
            copies: the larger of num_return_sequences and num_beams.

        Raises:
            ValueError: the cache already holds rows.
            TypeError, WrongCacheError, UnsupportedError: same as forwards.

        From then on `generate` refuses other prompts, until `reset`.
        """
        copies = integer("copies", copies, 1)
        check_model(model)
        check_prompts(input_ids, attention_mask)
        check_vocabulary(model, input_ids)
        if self.batch_size:
            raise ValueError(f"cache: got one that holds {self.batch_size} rows, expected none; call reset()")
        ids, mask = input_ids[:, :-1], None if attention_mask is None else attention_mask[:, :-1]
        if not ids.shape[1]:
            return
        positions = None if mask is None else (mask.long().cumsum(-1) - 1).clamp_min(0)
        with torch.no_grad():  # the model without its head: nobody reads the logits
            cache: dict[str, Any] = {cache_argument(): self}
            model.base_model(ids, attention_mask=mask, position_ids=positions, use_cache=True, **cache)
        self.batch_repeat_interleave(copies)

    def check_prompts(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, copies: int = 1
    ) -> None:
        """Raises UnsupportedError unless the prompts continue the rows; `generate` calls it.

        They must begin with the tokens that the rows hold, and have at least one more. An empty cache accepts
        all.

        Args:
            input_ids: int64 [B, S].
            attention_mask: [B, S], 0 for padding, which is on the left.
            copies: rows of the cache for each prompt.
        """
        copies = integer("copies", copies, 1)
        check_prompts(input_ids, attention_mask)
        if self._goes_on("input_ids", input_ids, copies):
            refuse_other_tokens(self.tokens(), input_ids, attention_mask)

    def check_embeddings(self, model: PreTrainedModel, inputs_embeds: Tensor, *, copies: int = 1) -> None:
        """`check_prompts` for embeddings [B, S, hidden]: they must begin with those of the rows' tokens."""
        copies = integer("copies", copies, 1)
        check_model(model)
        check_embeddings(inputs_embeds)
        if self._goes_on("inputs_embeds", inputs_embeds, copies):
            refuse_other_embeddings(self.tokens(), inputs_embeds, model.get_input_embeddings())

    def _goes_on(self, name: str, prompts: Tensor, copies: int) -> bool:
        """Whether there are rows that the prompts [B, S, ...] continue. Raises if sizes do not allow it."""
        if not self.batch_size:
            return False
        length, columns = prompts.shape[1], self._rows.columns
        if length <= columns:
            raise UnsupportedError(
                f"{name}: got prompts of {length} tokens, of which the cache holds {columns}, expected "
                "more; call cache.reset() before another prompt, or the same again"
            )
        refuse_other_rows(len(prompts) * copies, self.batch_size)
        return True

    def tokens(self) -> Tensor:
        """Returns the content of the rows, int64 [rows, columns] on the CPU.

        These are ids, -1 for padding, and 2**31 - 1 for unknown tokens: from `inputs_embeds`, or from a model
        in a compiled function.
        """
        if self.tree is None:
            return torch.empty((0, 0), dtype=torch.long)
        return held_tokens(self.tree, self.branches, self._rows.lengths(), self._rows.columns)

    def check_positions(self, position_ids: Tensor) -> None:
        """Raises UnsupportedError unless position_ids [B or 1, S] begin with those of the rows."""
        starts, columns = self._rows.starts, self._rows.columns
        if starts is None or position_ids.dim() != 2 or self.batch_size % len(position_ids):
            return
        token = torch.arange(columns) - (columns - torch.tensor(self._rows.lengths())[:, None])
        refuse_other_positions(torch.from_numpy(starts)[:, None] + token, token >= 0, position_ids)

    def reset(self) -> None:
        """Ends all rows. The cache keeps the pages for the next ones."""
        self._rows.clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replaces row i by row beam_idx[i]: a fork, which copies nothing."""
        self._rows.select(row_indices("beam_idx", beam_idx))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows of these indices, or where a bool tensor is True."""
        if self.batch_size:
            self._rows.select(selected_rows("indices", indices, self.batch_size))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Turns row i into rows i * repeats .. (i + 1) * repeats - 1: forks, which copy nothing."""
        repeats = integer("repeats", repeats, 1)
        self._rows.select([row for row in range(self.batch_size) for _ in range(repeats)])

    def crop(self, tokens_to_remove: int | Tensor) -> None:
        """Drops the last tokens of each row. tokens_to_remove: minus their number, as in transformers."""
        given: Any = tokens_to_remove
        if isinstance(given, Tensor) and given.dim() == 0:  # of assisted generation
            given = given.item()
        removed = any_integer("tokens_to_remove", given)
        if removed > 0:
            raise ValueError(f"tokens_to_remove: got {removed}, expected 0 or less: minus the tokens to drop")
        self._rows.crop(-removed)

    def early_initialization(self, *_: Any, **__: Any) -> None:
        raise UnsupportedError("cache: got a TreeCache for an exported graph, which it does not serve")
