"""The backend on a CPU, over packed pages in vLLM's KV memory."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from vllm.v1.kv_cache_interface import KVCacheLayout

from ... import _core
from ...checks.pages import PAGE_SIZE, packed_page
from ...ops.paged_attention import append_and_attend
from ...plans.tree_plan import Int32Array, TreePlan, plan
from .attention import TreeAttentionImpl, TreeBackend, TreeMetadata, TreeMetadataBuilder
from .support import VLLMIntegrationError

_DTYPES = (torch.float32, torch.bfloat16)


class PackedBackend(TreeBackend):
    supported_dtypes: ClassVar[list[Any]] = list(_DTYPES)
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "float32", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        return "CPU_ATTN"  # the backend that it replaces

    @staticmethod
    def get_impl_cls() -> type[PackedAttentionImpl]:
        return PackedAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[PackedMetadataBuilder]:
        return PackedMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return [PAGE_SIZE]  # vLLM splits larger blocks

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return list(range(32, 257, 16))

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[Any, ...]:
        return (KVCacheLayout.LBHNC,)


class PackedMetadataBuilder(TreeMetadataBuilder):
    def place(self) -> str:
        return f"at CPU level {_core.cpu_isa()}"

    def tables(self, step: Any) -> tuple[Int32Array, Int32Array]:
        return step.block_table_tensor.numpy(), step.seq_lens.numpy()

    def plan(self, tables: Int32Array, lengths: Int32Array, query_lens: Int32Array) -> TreePlan:
        return plan(tables, lengths, query_lens)


class PackedAttentionImpl(TreeAttentionImpl):
    plain = False
    dtypes = _DTYPES

    def pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the pages: a block of a head is the bytes of one K page, then of one V page."""
        num_blocks, num_kv_heads, block_size, channels = kv_cache.shape
        if (block_size, channels) != (PAGE_SIZE, 2 * self.head_size):
            raise VLLMIntegrationError(
                f"kv_cache: got blocks of {block_size} tokens with {channels} channels, expected {PAGE_SIZE} "
                f"and {2 * self.head_size}; pass --block-size {PAGE_SIZE}"
            )
        halves = kv_cache.view(num_blocks, num_kv_heads, 2, PAGE_SIZE * self.head_size)
        k_page, v_page = packed_page(self.head_size, kv_cache.dtype)
        lead = num_blocks, num_kv_heads
        return halves[:, :, 0].view(*lead, *k_page), halves[:, :, 1].view(*lead, *v_page)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pages: tuple[Tensor, Tensor],
        step: TreeMetadata,
        out: Tensor,
    ) -> None:
        new = (k, v, step.slots) if self.kv_sharing_target_layer_name is None else None
        append_and_attend(
            q,
            *pages,
            cast(TreePlan, step.plan),
            out,
            new=new,
            scale=self.scale,
            window=self.sliding_window,
            logits_soft_cap=self.logits_soft_cap,
        )
