"""Compiles Triton kernels ahead of time, as launchers would call them, and prints the results as JSON.

Run as a script, in a separate process: importing a module makes its kernels for the interpreter or for the
compiler. No GPU is needed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tts_kernels.backends.launch import AttentionOptions, SelectOptions, WorkCapacity, WorkLaunch, WorkLayout

ARCHITECTURES = (80, 90, 100)
KERNELS = {
    "append_kv": ("_append",),
    "copy_pages": ("_copy",),
    "gather_kv": ("_gather",),
    "tree_attention": ("_attend", "_merge"),
    "append_scaled": ("_append",),
    "page_summaries": ("_summarize",),
    "score_pages": ("_score", "_normalize"),
    "select_pages": ("_select", "_sum"),
    "chosen_pages": ("_list",),
    "page_mass": ("_page_logits",),
}
DENSE = ("append_kv", "copy_pages", "gather_kv", "tree_attention")
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int64: "*i64",
    torch.float64: "*fp64",
}


class Variant(NamedTuple):
    op: str
    kernel: str
    dtype: str
    head_dim: int
    page_size: int
    options: AttentionOptions
    architecture: int
    kv_heads: int = 8
    group: int = 4
    sparse: bool = False  # over chosen pages
    storage: str | None = None  # of pages; default: dtype

    @property
    def name(self) -> str:
        o = self.options
        extras = ["window"] * (o.window > 0) + ["cap"] * (o.soft_cap > 0) + ["sparse"] * self.sparse
        extras += ["sinks"] * (o.sinks is not None) + ["alibi"] * (o.slopes is not None)
        extras += ["chunk"] * (o.chunk > 0)
        extras += [self.storage] * (self.storage is not None)
        parts = [self.kernel[1:], self.dtype, f"d{self.head_dim}", f"page{self.page_size}", *extras]
        return "-".join([*parts, f"{self.kv_heads}x{self.group}", f"sm_{self.architecture}"])


def _variants() -> list[Variant]:
    plain = AttentionOptions(0.1, 0, 0.0)
    chosen = [
        ("tree_attention", "_attend", "bfloat16", head_dim, 16, plain, architecture)
        for head_dim in (128, 256, 64)
        for architecture in ARCHITECTURES
    ]
    chosen += [
        ("tree_attention", "_attend", "float16", 80, 1, AttentionOptions(0.1, 512, 0.0), 90),
        ("tree_attention", "_attend", "bfloat16", 128, 64, AttentionOptions(0.1, 512, 30.0), 90),
        ("tree_attention", "_attend", "float32", 128, 16, plain, 90),
    ]
    chosen += [
        (op, kernel, "bfloat16", 128, 16, plain, architecture)
        for op in DENSE
        for kernel in KERNELS[op]
        for architecture in ARCHITECTURES
        if kernel != "_attend"
    ]
    sinks, slopes = torch.empty(32), torch.empty(32)
    chosen += [
        ("tree_attention", "_attend", "bfloat16", 64, 16, AttentionOptions(0.1, 128, 0.0, sinks), 80),
        ("tree_attention", "_attend", "bfloat16", 64, 16, AttentionOptions(0.1, 128, 0.0, sinks), 90),
        ("tree_attention", "_merge", "bfloat16", 128, 16, AttentionOptions(0.1, 128, 0.0, sinks), 90),
        ("tree_attention", "_attend", "bfloat16", 128, 16, AttentionOptions(0.1, 0, 0.0, slopes=slopes), 90),
        ("tree_attention", "_attend", "bfloat16", 128, 16, AttentionOptions(0.1, 0, 0.0, chunk=8192), 90),
    ]
    # What sparse attention adds, once each; what multiplies matrices, for each architecture.
    sparse = [
        Variant(op, kernel, "bfloat16", 128, 16, plain, architecture, sparse=True)
        for op, kernel in (("tree_attention", "_attend"), ("score_pages", "_score"))
        for architecture in ARCHITECTURES
    ]
    sparse += [
        Variant(op, kernel, "bfloat16", 128, 16, plain, 90, sparse=True)
        for op, kernels in KERNELS.items()
        if op not in (*DENSE, "append_scaled")
        for kernel in kernels
        if kernel != "_score"
    ]
    # Pages of 8 bits; sm_80 has no instructions for those of float8.
    sparse += [
        Variant(op, kernel, "bfloat16", 128, 16, plain, architecture, sparse=True, storage=storage)
        for op, kernel in (("tree_attention", "_attend"), ("append_scaled", "_append"))
        for architecture, storage in ((80, "int8"), (90, "float8_e4m3fn"))
    ]
    # A kernel sees an argument of 1 as a constant: one head, one query head a KV head, one token a page.
    ones = [("tree_attention", "_attend", "float32"), ("tree_attention", "_merge", "float32")]
    ones += [(op, KERNELS[op][0], "bfloat16") for op in ("append_kv", "copy_pages", "gather_kv")]
    return [
        *(Variant(*each) for each in chosen),
        *sparse,
        *(Variant(*each, 64, 1, plain, 80, kv_heads=1, group=1) for each in ones),
    ]


VARIANTS = _variants()


class _Recorder:
    """Stands in for a kernel and keeps what it is called with."""

    def __getitem__(self, grid: tuple[int, ...]) -> _Recorder:
        return self

    def __call__(self, *args: Any, **keywords: Any) -> None:
        self.args, self.keywords = args, keywords


def call_of(variant: Variant) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The kernel and the arguments with which its launcher calls it."""
    modules = {op: import_module(f"tts_kernels.backends.triton.{op}") for op in KERNELS}
    kept = {(op, name): getattr(modules[op], name) for op, names in KERNELS.items() for name in names}
    recorder = _Recorder()
    for op, name in kept:
        setattr(modules[op], name, recorder if (op, name) == (variant.op, variant.kernel) else _Recorder())
    _launch(variant, modules[variant.op])
    for (op, name), original in kept.items():
        setattr(modules[op], name, original)
    return kept[variant.op, variant.kernel], recorder.args, recorder.keywords


def _launch(variant: Variant, module: Any) -> None:
    dtype, heads, head_dim = getattr(torch, variant.dtype), variant.kv_heads, variant.head_dim
    storage = dtype if variant.storage is None else getattr(torch, variant.storage)
    pages = torch.empty((1, 64, heads, variant.page_size, head_dim), dtype=storage)
    scales = None if variant.storage is None else torch.empty((64, heads, 2))
    rows = torch.empty((64, heads, head_dim), dtype=dtype)
    q = torch.empty((64, heads * variant.group, head_dim), dtype=dtype)
    numbers = torch.zeros((64, 2), dtype=torch.int32)
    slots = numbers[:, 0]
    summaries = torch.empty((64, heads, 2, head_dim), dtype=dtype)
    scores = torch.empty((heads, 64, 2048))
    mask = torch.empty((heads, 64, 64), dtype=torch.int32)
    capacity = WorkCapacity(64, 64, 64, 64, 64)
    work = torch.zeros(WorkLayout.of(capacity).end, dtype=torch.int32)
    launch = WorkLaunch(work, torch.empty(1), capacity, 64, 64)
    select = SelectOptions(256, 0.9, 1, 1, slots, slots if variant.kernel == "_sum" else None)
    chosen = mask if variant.sparse else None
    calls: dict[str, Callable[[], object]] = {
        "append_kv": lambda: module.append_kv(rows, rows, pages[0], pages[0], slots),
        "copy_pages": lambda: module.copy_pages(pages, pages, numbers),
        "gather_kv": lambda: module.gather_kv(pages[0], pages[0], slots, rows, rows),
        "tree_attention": lambda: module.tree_attention(
            q, pages[0], pages[0], launch, variant.options, q, torch.empty(1), chosen, scales
        ),
        "append_scaled": lambda: module.append_scaled(rows, rows, pages[0], pages[0], slots, scales),
        "page_summaries": lambda: module.summarize_pages(pages[0], slots, summaries),
        "score_pages": lambda: module.score_pages(q, summaries, launch, variant.page_size, 0.1, scores),
        "select_pages": lambda: module.select_top_pages(scores, launch, variant.page_size, select, mask),
        "chosen_pages": lambda: module.list_chosen_pages(mask, launch, variant.page_size, variant.group),
        "page_mass": lambda: module.page_mass(q, pages[0], launch, variant.options, mask, scores),
    }
    calls[variant.op]()


def compile_variant(variant: Variant) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, args, keywords = call_of(variant)
    options = {name: keywords.pop(name) for name in ("num_warps", "num_stages") if name in keywords}
    values = dict(zip(kernel.arg_names, args, strict=False)) | keywords
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def specialize(value: Any, path: tuple[int, ...], wanted: bool) -> Any:
        """The type of an argument as a call of the kernel sees it: 1 and multiples of 16 are special."""
        if isinstance(value, tuple):
            return tuple(specialize(each, (*path, i), wanted) for i, each in enumerate(value))
        if isinstance(value, float):
            return "fp32"
        if value is None:
            constants[path] = None
            return "constexpr"
        if isinstance(value, int) and wanted and value == 1:
            constants[path] = 1
            return "constexpr"
        if isinstance(value, torch.Tensor) or (wanted and value % 16 == 0):
            attributes[path] = [["tt.divisibility", 16]]
        return _POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"

    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(i,)] = "constexpr", value
        else:
            signature[parameter.name] = specialize(value, (i,), not parameter.do_not_specialize)
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", variant.architecture, 32)
    compiled = triton.compile(source, target=target, options=options)
    ptx = compiled.asm["ptx"]
    operations = ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "cp.async.cg", "ld.global.v4", "st.global.v4")
    return {
        "cubin": len(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "stack": stack_bytes(compiled.asm["cubin"], Path(triton.__file__).parent),
        "ptx": {operation: ptx.count(operation) for operation in operations},
    }


def stack_bytes(cubin: bytes, triton_folder: Path) -> int:
    """Memory of a thread for what registers do not hold, by the tool that comes with Triton."""
    tool = triton_folder / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True)
    return max(map(int, re.findall(r"STACK:(\d+)", done.stdout)))


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        results = pool.map(compile_variant, VARIANTS)
        json.dump({v.name: result for v, result in zip(VARIANTS, results, strict=True)}, sys.stdout)
