"""Stores keys and values in pages."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .checks import choice, integer
from .checks.pages import (
    DTYPES,
    PACKED_HEAD_DIMS,
    PAGE_SIZE,
    SUMMARIES,
    check_plain,
    packed_page,
    summary_dtype,
    summary_shape,
)
from .device import checked_device
from .machine_memory import memory_bytes
from .ops.append_kv import append_kv
from .ops.copy_pages import copy_pages
from .ops.gather_kv import gather_kv
from .ops.tree_attention import tree_attention, tree_attention_with_mass
from .plans.device_plan import DevicePlan
from .plans.tree_plan import TreePlan

LAYOUTS = ("packed", "HND", "NHD")  # the first on the CPU only


class KVPool:
    """Pages of keys and values for all layers of a model.

    Position p of a branch is in slot p % page_size of page block_table[p // page_size] (see `KVTree`). On the
    CPU the system commits memory when pages are first written. Unwritten slots hold arbitrary values: no
    kernel lets them reach a result.

    Pages are packed, for the CPU kernels, or plain, for GPUs. Operators on plain pages on the CPU run in
    Triton's interpreter (TRITON_INTERPRET=1), slowly, to try GPU code without a GPU. `gather` returns plain
    tensors from either.

    Args:
        num_layers, num_kv_heads: of the model, >= 1.
        head_dim: packed, a multiple of 16 from 32 to 256; plain, a multiple of 8 from 16 to 256.
        num_pages: size of the pool in pages. Give either this or `budget_bytes`.
        budget_bytes: size in bytes; the pool takes as many whole pages as fit.
        dtype: torch.float32, torch.bfloat16, packed torch.int8 (half the bytes of bfloat16; see
            `tts_kernels.append_kv`), or plain torch.float16, torch.int8 or torch.float8_e4m3fn.
        page_size: tokens of a page; packed, 16.
        device: "cpu", "cuda" or a torch.device.
        layout: order in memory. "packed" (CPU only, its default); "HND", page by page, head by head, token by
            token (default elsewhere); "NHD", heads inside tokens.
        summaries: "mean", "minmax" or, in packed pages, "quarters" keeps a summary of each page's keys for
            sparse attention (see `select_pages`). A mean takes 1/32 of the bytes of 16 tokens' keys and
            values, the other two 1/16; with 8-bit pages, twice that. Default: none.

    Attributes:
        k_pages, v_pages: packed [num_layers, num_pages, num_kv_heads, *packed page], see
            csrc/cpu/kv_layout.h; plain [num_layers, num_pages, num_kv_heads, page_size, head_dim], a view for
            "NHD".
        summaries: [num_layers, num_pages, num_kv_heads, S, channels]: S = 1, mean, or S = 2, minimum and
            maximum, of head_dim channels; S = 4, quarters, of head_dim / 2; or None.
        scales: for int8 pages, float32 [num_layers, num_pages, num_kv_heads, 2] of K and V; else None.
        page_bytes: bytes of one page over all layers: keys, values, summary and scales.

    Raises:
        TypeError, ValueError: an argument is out of range, or the device does not exist.
        MemoryError: the system does not grant that much.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_pages: int | None = None,
        budget_bytes: int | None = None,
        dtype: torch.dtype = torch.float32,
        page_size: int = PAGE_SIZE,
        device: str | torch.device = "cpu",
        layout: str | None = None,
        summaries: str | None = None,
    ) -> None:
        num_layers, num_kv_heads = (
            integer("num_layers", num_layers, 1),
            integer("num_kv_heads", num_kv_heads, 1),
        )
        head_dim, page_size = integer("head_dim", head_dim, 1), integer("page_size", page_size, 1)
        num_pages = None if num_pages is None else integer("num_pages", num_pages)
        budget_bytes = None if budget_bytes is None else integer("budget_bytes", budget_bytes)
        device = checked_device(device)
        self.layout = _layout(layout, device)
        if self.layout == "packed":
            _check_packed(head_dim, dtype, page_size)
        else:
            check_plain(head_dim, dtype)
        choice("summaries", summaries, (*SUMMARIES, None))
        if summaries == "quarters" and self.layout != "packed":
            raise ValueError(
                f"summaries: got 'quarters' with layout {self.layout!r}, expected packed pages; take 'mean' "
                "or 'minmax' on plain ones"
            )
        self.page_bytes = page_bytes(num_layers, num_kv_heads, head_dim, page_size, dtype, summaries)
        self.num_pages = _pages(num_pages, budget_bytes, self.page_bytes, page_size)
        self.num_layers, self.num_kv_heads, self.head_dim = num_layers, num_kv_heads, head_dim
        self.dtype, self.page_size = dtype, page_size
        try:
            self.k_pages, self.v_pages, self.scales = self._allocate(device)
            shape = (num_layers, self.num_pages, num_kv_heads, *summary_shape(summaries, head_dim))
            self.summaries = (
                torch.empty(shape, dtype=summary_dtype(dtype), device=device) if summaries else None
            )
        except RuntimeError as cause:
            name, value = ("num_pages", num_pages) if budget_bytes is None else ("budget_bytes", budget_bytes)
            raise MemoryError(
                f"{name}: got {value}, which takes {self.num_pages * self.page_bytes} bytes, more than the "
                "system grants; ask for less"
            ) from cause
        self._select_layers()

    def _select_layers(self) -> None:
        """Selects each layer once: it takes over a microsecond, and would happen twice per layer and step."""
        self._layers = tuple(zip(self.k_pages.unbind(0), self.v_pages.unbind(0), strict=True))
        self._layer_scales = (None,) * self.num_layers if self.scales is None else self.scales.unbind(0)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_layers", "_layer_scales")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a copy, a layer is again a view of all layers' pages."""
        vars(self).update(state)
        self._select_layers()

    def _allocate(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        heads, page_size, head_dim = self.num_kv_heads, self.page_size, self.head_dim
        if self.layout == "packed":
            k_shape, v_shape = packed_page(head_dim, self.dtype)
            k_page, v_page = (heads, *k_shape), (heads, *v_shape)
        elif self.layout == "HND":
            k_page = v_page = (heads, page_size, head_dim)
        else:
            k_page = v_page = (page_size, heads, head_dim)
        pages = (self.num_layers, self.num_pages)
        k = torch.empty((*pages, *k_page), dtype=self.dtype, device=device)
        v = torch.empty((*pages, *v_page), dtype=self.dtype, device=device)
        # 0 is the scale of a page that was never written; like the pages, the system commits them on use.
        scales = None
        if self.dtype.itemsize == 1:
            scales = torch.zeros((*pages, heads, 2), dtype=torch.float32, device=device)
        return (k.transpose(2, 3), v.transpose(2, 3), scales) if self.layout == "NHD" else (k, v, scales)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns the key and value pages of one layer, as the operators take them."""
        return self._layers[integer("layer", index, 0, self.num_layers - 1)]

    def layer_summaries(self, index: int) -> Tensor:
        """Returns the summaries [num_pages, num_kv_heads, S, channels] of one layer."""
        if self.summaries is None:
            raise ValueError('summaries: got none; make the pool with summaries="mean"')
        return self.summaries[integer("layer", index, 0, self.num_layers - 1)]

    def layer_scales(self, index: int) -> Tensor | None:
        """Returns the scales of one layer's pages [num_pages, num_kv_heads, 2]; None unless they are int8."""
        return self._layer_scales[integer("layer", index, 0, self.num_layers - 1)]

    def append(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Writes keys and values [T, num_kv_heads, head_dim] of one layer into int32 slots [T]."""
        summaries = None if self.summaries is None else self.layer_summaries(layer)
        append_kv(k, v, *self.layer(layer), slots, summaries=summaries, scales=self.layer_scales(layer))

    def copy(self, copies: Tensor) -> None:
        """Copies pages in all layers; copies: int32 [C, 2] of (source, destination)."""
        copy_pages(self.k_pages, self.v_pages, copies, summaries=self.summaries, scales=self.scales)

    def read_pages(self, pages: Tensor) -> Tensor:
        """Returns the content of pages [M], uint8 [M, page_bytes], for `write_pages` of a similar pool."""
        chosen = self._page_numbers(pages)
        rows = [
            part.index_select(1, chosen).transpose(0, 1).reshape(len(chosen), -1).view(torch.uint8)
            for part in self._parts()
        ]
        return torch.cat(rows, dim=1)

    def write_pages(self, pages: Tensor, rows: Tensor) -> None:
        """Writes what `read_pages` returned into other pages [M], all distinct.

        Raises:
            TypeError, ValueError: pages are outside the pool, or rows are not uint8 [M, page_bytes].
        """
        chosen = self._page_numbers(pages)
        shape = [len(chosen), self.page_bytes]
        if rows.dtype != torch.uint8 or list(rows.shape) != shape:
            raise ValueError(f"rows: got {rows.dtype} {list(rows.shape)}, expected torch.uint8 {shape}")
        parts = self._parts()
        sizes = [part[:, :1].numel() * part.itemsize for part in parts]
        for part, taken in zip(parts, torch.split(rows.to(chosen.device), sizes, dim=1), strict=True):
            values = taken.contiguous().view(part.dtype)
            values = values.view(len(chosen), part.shape[0], *part.shape[2:])
            part.index_copy_(1, chosen, values.transpose(0, 1))

    def _parts(self) -> list[Tensor]:
        """Returns all tensors of [num_layers, num_pages, ...]."""
        parts = (self.k_pages, self.v_pages, self.summaries, self.scales)
        return [part for part in parts if part is not None]

    def _page_numbers(self, pages: Tensor) -> Tensor:
        """Returns the page numbers as int64 [M] on the pool's device."""
        if pages.dtype not in (torch.int32, torch.int64) or pages.ndim != 1:
            raise TypeError(f"pages: got {pages.dtype} {list(pages.shape)}, expected int32 or int64 [M]")
        if len(pages) and (int(pages.min()) < 0 or int(pages.max()) >= self.num_pages):
            raise ValueError(
                f"pages: got {int(pages.min())} to {int(pages.max())}, expected 0 to {self.num_pages - 1}"
            )
        return pages.to(self.k_pages.device, torch.int64)

    def gather(self, layer: int, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Returns a branch's keys and values [length, num_kv_heads, head_dim] in one layer; int8 as
        floats."""
        return gather_kv(*self.layer(layer), block_table, length, scales=self.layer_scales(layer))

    def attend(
        self, layer: int, q: Tensor, plan: TreePlan | DevicePlan, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Runs `tree_attention` of queries [T, num_q_heads, head_dim] over one layer's pages and scales."""
        return tree_attention(q, *self.layer(layer), plan, scales=self.layer_scales(layer), **options)

    def attend_with_mass(
        self, layer: int, q: Tensor, plan: TreePlan | DevicePlan, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs `tree_attention_with_mass` of queries over one layer's pages and scales."""
        scales = self.layer_scales(layer)
        return tree_attention_with_mass(q, *self.layer(layer), plan, scales=scales, **options)


def page_bytes(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    summaries: str | None = None,
) -> int:
    """Returns the bytes of one page over all layers: keys, values, summary and the scales of int8 pages."""
    summary = math.prod(summary_shape(summaries, head_dim)) * summary_dtype(dtype).itemsize
    scales = 2 * torch.float32.itemsize if dtype.itemsize == 1 else 0
    return num_layers * num_kv_heads * (2 * page_size * head_dim * dtype.itemsize + summary + scales)


def default_bytes(device: torch.device) -> int:
    """Returns the default pool size: a quarter of `memory_bytes` on the CPU, 3/4 of a GPU's free memory."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) * 3 // 4
    return memory_bytes() // 4


def _layout(layout: str | None, device: torch.device) -> str:
    expected = LAYOUTS if device.type == "cpu" else LAYOUTS[1:]
    if layout is None:
        return expected[0]
    choice("layout", layout, expected)
    return layout


def _check_packed(head_dim: int, dtype: torch.dtype, page_size: int) -> None:
    if head_dim not in PACKED_HEAD_DIMS:
        raise ValueError(f"head_dim: got {head_dim}, expected a multiple of 16 from 32 to 256")
    if dtype not in DTYPES:
        raise TypeError(f"dtype: got {dtype}, expected torch.float32, torch.bfloat16 or torch.int8")
    if page_size != PAGE_SIZE:
        raise ValueError(f"page_size: got {page_size}, expected {PAGE_SIZE}, the only one of the CPU kernels")


def _pages(num_pages: int | None, budget_bytes: int | None, page_bytes: int, page_size: int) -> int:
    limit = (2**31 - 1) // page_size  # slots are int32
    if num_pages is not None and budget_bytes is None:
        if not 1 <= num_pages <= limit:
            raise ValueError(f"num_pages: got {num_pages}, expected 1 <= num_pages <= {limit}")
        return num_pages
    if budget_bytes is not None and num_pages is None:
        if budget_bytes < page_bytes:
            raise ValueError(
                f"budget_bytes: got {budget_bytes}, expected at least a page of {page_bytes} bytes"
            )
        return min(budget_bytes // page_bytes, limit)
    raise ValueError(
        f"num_pages, budget_bytes: got {num_pages} and {budget_bytes}, expected exactly one of the two"
    )
