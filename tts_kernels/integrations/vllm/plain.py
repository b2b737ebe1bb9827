"""The backend on a GPU, over plain pages in vLLM's KV memory. It has not run on a GPU yet."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import MultipleOf

from ...ops import append_kv, tree_attention
from ...plans.device_plan import DevicePlan
from ...plans.device_planner import DevicePlanner
from ...plans.tree_plan import Int32Array
from .attention import TreeAttentionImpl, TreeBackend, TreeMetadata, TreeMetadataBuilder
from .support import REMEDY, VLLMIntegrationError

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class PlainBackend(TreeBackend):
    supported_dtypes: ClassVar[list[Any]] = list(_DTYPES)
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "float32", "float16", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[PlainAttentionImpl]:
        return PlainAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[PlainMetadataBuilder]:
        return PlainMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return [MultipleOf(16)]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return list(range(16, 257, 8))


class PlainMetadataBuilder(TreeMetadataBuilder):
    """Plans on the host.

    The block tables and lengths are on the device, so each step waits for it once. Steps are not captured as
    CUDA graphs (AttentionCGSupport.NEVER, the default of vLLM's builders).
    """

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        layers = vllm_config.compilation_config.static_forward_context
        heads = {layers[name].num_heads for name in layer_names}
        if len(heads) > 1:  # the plan depends on their number
            raise VLLMIntegrationError(
                f"{layer_names[0]}: got layers of {' and '.join(map(str, sorted(heads)))} query heads in one "
                f"group of KV memory, expected one number; {REMEDY}"
            )
        self._planner: DevicePlanner | None = None

    def place(self) -> str:
        return f"on {self.device}"

    def tables(self, step: Any) -> tuple[Int32Array, Int32Array]:
        """Copies tables and lengths from the device at once, only columns that hold blocks."""
        columns = -(-step.max_seq_len // self.kv_cache_spec.block_size)
        used = torch.cat([step.seq_lens[:, None], step.block_table_tensor[:, :columns]], dim=1).cpu().numpy()
        return used[:, 1:], used[:, 0]

    def plan(self, tables: Int32Array, lengths: Int32Array, query_lens: Int32Array) -> DevicePlan:
        if self._planner is None:
            self._planner = self._make_planner()
        return self._planner.update(tables, lengths, query_lens)

    def _make_planner(self) -> DevicePlanner:
        """Makes the planner at the first step, when the layers have their memory."""
        spec = self.kv_cache_spec
        layer = self.vllm_config.compilation_config.static_forward_context[self.layer_names[0]]
        return DevicePlanner(
            num_q_heads=layer.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_size,
            page_size=spec.block_size,
            num_pages=layer.kv_cache.shape[0],
            dtype=spec.dtype,
            device=self.device,
        )


class PlainAttentionImpl(TreeAttentionImpl):
    plain = True
    dtypes = _DTYPES

    def pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        return kv_cache[..., : self.head_size], kv_cache[..., self.head_size :]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pages: tuple[Tensor, Tensor],
        step: TreeMetadata,
        out: Tensor,
    ) -> None:
        if self.kv_sharing_target_layer_name is None:
            append_kv(k, v, *pages, step.slots)
        attended, _ = tree_attention(
            q,
            *pages,
            step.plan,
            scale=self.scale,
            window=self.sliding_window,
            logits_soft_cap=self.logits_soft_cap,
        )
        out.copy_(attended)
