"""Storage of keys and values in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels.ops._common import DTYPES, PAGE_SIZE, page_layout
from tts_kernels.ops.append_kv import append_kv
from tts_kernels.ops.copy_pages import copy_pages
from tts_kernels.ops.gather_kv import gather_kv


class KVPool:
    """Pages of keys and values for all layers of a model, on the CPU.

    Position p of a branch lives in slot p % 16 of page block_table[p // 16] (see `KVTree`). Pages are packed
    for the kernels; `gather` gives plain tensors back. Memory is committed by the system as pages are first
    written, and unwritten slots hold anything: no kernel lets them reach a result.

    Args:
        num_layers, num_kv_heads: of the model, >= 1.
        head_dim: a multiple of 16 from 32 to 256.
        num_pages: size of the pool in pages, or
        budget_bytes: size in bytes, of which whole pages are taken. Exactly one of the two.
        dtype: torch.float32 or torch.bfloat16.
        page_size: tokens of a page, 16.

    Attributes:
        k_pages, v_pages: [num_layers, num_pages, num_kv_heads, *packed page]; see csrc/cpu/kv_layout.h.
        page_bytes: bytes of one page over all layers, keys and values.

    Raises:
        TypeError, ValueError: an argument is out of range.
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
    ) -> None:
        integers = {"num_layers": num_layers, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
        for name, value in (integers | {"num_pages": num_pages, "budget_bytes": budget_bytes}).items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name}: got {value!r}, expected an int")
        for name, value in integers.items():
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected >= 1")
        if not 32 <= head_dim <= 256 or head_dim % 16 != 0:
            raise ValueError(f"head_dim: got {head_dim}, expected a multiple of 16 from 32 to 256")
        if dtype not in DTYPES:
            raise TypeError(f"dtype: got {dtype}, expected torch.float32 or torch.bfloat16")
        if page_size != PAGE_SIZE:
            raise ValueError(
                f"page_size: got {page_size}, expected {PAGE_SIZE}, the only one of the CPU kernels"
            )
        self.page_bytes = 2 * num_layers * num_kv_heads * page_size * head_dim * dtype.itemsize
        self.num_pages = _pages(num_pages, budget_bytes, self.page_bytes)
        self.num_layers, self.num_kv_heads, self.head_dim = num_layers, num_kv_heads, head_dim
        self.dtype, self.page_size = dtype, page_size
        layout = page_layout(head_dim, dtype)
        shape = (num_layers, self.num_pages, num_kv_heads)
        try:
            self.k_pages = torch.empty((*shape, *layout.k_shape), dtype=dtype)
            self.v_pages = torch.empty((*shape, *layout.v_shape), dtype=dtype)
        except RuntimeError as cause:
            name, value = ("num_pages", num_pages) if budget_bytes is None else ("budget_bytes", budget_bytes)
            raise MemoryError(
                f"{name}: got {value}, which takes {self.num_pages * self.page_bytes} bytes, more than the "
                "system grants; ask for less"
            ) from cause
        # Selecting a layer costs more than a microsecond and happens twice per layer and step.
        self._layers = tuple(zip(self.k_pages.unbind(0), self.v_pages.unbind(0), strict=True))

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Key and value pages of one layer, as the operators take them."""
        if not 0 <= index < self.num_layers:
            raise ValueError(f"layer: got {index}, expected 0 <= layer < {self.num_layers}")
        return self._layers[index]

    def append(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Writes keys and values [T, num_kv_heads, head_dim] of one layer into int32 slots [T]."""
        append_kv(k, v, *self.layer(layer), slots)

    def copy(self, copies: Tensor) -> None:
        """Copies pages, int32 [C, 2] of (source, destination), in all layers."""
        copy_pages(self.k_pages, self.v_pages, copies)

    def gather(self, layer: int, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [length, num_kv_heads, head_dim] of a branch in one layer."""
        return gather_kv(*self.layer(layer), block_table, length)


def _pages(num_pages: int | None, budget_bytes: int | None, page_bytes: int) -> int:
    limit = 2**27 - 1  # slots are int32
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
