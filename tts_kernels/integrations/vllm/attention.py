"""Attention of one step: one plan for all layers of a KV cache group, and each layer's use of it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionMetadataBuilder
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

from ...plans.device_plan import DevicePlan
from ...plans.tree_plan import Int32Array, TreePlan
from .block_tables import joined_behind_window
from .support import (
    REMEDY,
    VARIABLE,
    VLLMIntegrationError,
    check_cache_dtype,
    check_dtype,
    check_layer,
    check_output,
)


@dataclass
class TreeMetadata:
    """A step's plan and slots.

    plan: of the step's queries. slots: int32 [T], where their keys and values go. vLLM's tensors may have
    more rows than these T.
    """

    plan: TreePlan | DevicePlan
    slots: Tensor


class TreeMetadataBuilder(AttentionMetadataBuilder[TreeMetadata]):
    """Plans each step from the block tables of one KV cache group: equal leading ids are shared pages.

    steps: number of plans made.
    """

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if type(kv_cache_spec) not in (FullAttentionSpec, SlidingWindowSpec):
            raise VLLMIntegrationError(
                f"{layer_names[0]}: got a {type(kv_cache_spec).__name__}, expected that of full or sliding "
                f"window attention; {REMEDY}"
            )
        if kv_cache_spec.head_size_v != kv_cache_spec.head_size:
            raise VLLMIntegrationError(
                f"{layer_names[0]}: got values of {kv_cache_spec.head_size_v} channels, expected "
                f"{kv_cache_spec.head_size}, as keys have; {REMEDY}"
            )
        # If layers with and without a window are one group, vLLM keeps all blocks.
        self._window = kv_cache_spec.sliding_window if isinstance(kv_cache_spec, SlidingWindowSpec) else None
        self.steps = 0
        init_logger("vllm.tts_kernels").warning(
            "tts_kernels computes the attention of this engine, in %s %s. %s=0 turns it off.",
            str(kv_cache_spec.dtype).removeprefix("torch."),
            self.place(),
            VARIABLE,
        )

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> TreeMetadata:
        step = common_attn_metadata
        if step.causal is not True:
            raise VLLMIntegrationError(
                f"causal: got attention to later tokens, expected causal attention; {REMEDY}"
            )
        ends = step.query_start_loc_cpu.numpy()
        query_lens = np.diff(ends)
        tables, lengths = self.tables(step)
        if self._window is not None:
            block_size = self.kv_cache_spec.block_size
            tables = joined_behind_window(tables, lengths, query_lens, self._window, block_size)
        plan = self.plan(tables, lengths, query_lens)
        self.steps += 1
        return TreeMetadata(plan, step.slot_mapping[: ends[-1]].to(torch.int32))

    @abstractmethod
    def place(self) -> str:
        """Where attention is computed, in words."""

    @abstractmethod
    def tables(self, step: Any) -> tuple[Int32Array, Int32Array]:
        """Returns block tables [B, P] and lengths [B] of vLLM's CommonAttentionMetadata of B requests."""

    @abstractmethod
    def plan(self, tables: Int32Array, lengths: Int32Array, query_lens: Int32Array) -> TreePlan | DevicePlan:
        """Plans a step. query_lens: int32 [B]."""


class TreeAttentionImpl(AttentionImpl[TreeMetadata]):
    """Attention of one layer. The arguments are those that vLLM's layers pass."""

    plain: ClassVar[bool]
    dtypes: ClassVar[tuple[torch.dtype, ...]]

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = "decoder",
        kv_sharing_target_layer_name: str | None = None,
        **options: Any,
    ) -> None:
        check_layer(head_size, attn_type, self.plain, {"alibi_slopes": alibi_slopes, **options})
        dtype = torch.get_default_dtype()  # the model's, while a model is being made
        check_dtype(dtype, self.dtypes)
        check_cache_dtype(kv_cache_dtype, dtype)
        self.num_heads, self.head_size, self.num_kv_heads = num_heads, head_size, num_kv_heads
        self.scale, self.kv_cache_dtype = float(scale), kv_cache_dtype
        self.sliding_window, self.logits_soft_cap = sliding_window, logits_soft_cap or None
        # Such a layer reads the keys and values of an earlier one.
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self._kv_cache: Tensor | None = None
        self._pages: tuple[Tensor, Tensor]

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: TreeMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attends with one layer.

        query, output: [T or more, num_heads, head_size]. key, value: the same with num_kv_heads. kv_cache:
        [num_blocks, num_kv_heads, block_size, 2 * head_size] as vLLM allocates it; its content has our
        layout.
        """
        if output_scale is not None or output_block_scale is not None:
            check_output(output_scale, output_block_scale)
        if attn_metadata is None:  # a run without a batch, which measures memory
            return output.zero_()
        if kv_cache is not self._kv_cache:
            self._pages, self._kv_cache = self.pages(kv_cache), kv_cache
        rows = attn_metadata.slots.shape[0]
        if query.shape[0] == rows:
            self.attend(query, key, value, self._pages, attn_metadata, output)
        else:
            self.attend(query[:rows], key[:rows], value[:rows], self._pages, attn_metadata, output[:rows])
        return output

    @abstractmethod
    def pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value pages in that memory, as views."""

    @abstractmethod
    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pages: tuple[Tensor, Tensor],
        step: TreeMetadata,
        out: Tensor,
    ) -> None:
        """Writes k and v into the pages, then writes the attention of the T queries to out.

        A layer that reads the pages of another one does not write k and v.
        """


class TreeBackend(AttentionBackend):
    """The answers of both backends to vLLM."""

    forward_includes_kv_cache_update = True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_kv_connector(cls) -> bool:
        return False
