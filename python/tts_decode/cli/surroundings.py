"""The machine in the report of `doctor`: kernels, instruction sets, threads, memory, GPU, model, cache."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from .findings import Finding

_GIB = 1 << 30
_REINSTALL = "pip install --force-reinstall --no-deps tts-kernels (in a checkout: pip install -e .)"
_LEAST_FREE = 2 * _GIB  # a dequantised copy of the default model takes 0.5 GB
_FLAGS = ("amx_tile", "amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2")


def kernels() -> list[Finding]:
    """Reports the compiled module, and the instruction set that it uses."""
    try:
        from tts_kernels import _core
    except ImportError as error:
        return [Finding("extension", " ".join(str(error).split()), "broken", _REINSTALL)]
    found = [Finding("extension", f"loaded, {_core.__file__}")]
    levels = dict(_core.cpu_isa_levels())
    best, used = next(name for name, supported in levels.items() if supported), _core.cpu_isa()
    told = f"{used}; this CPU has: {', '.join(name for name, supported in levels.items() if supported)}"
    remedy = "unset TTS_KERNELS_FORCE_CPU_ISA for the best level" if used != best else None
    found.append(
        Finding("level", told, "ok" if used == best else "warning", remedy, {"used": used, **levels})
    )
    flags = _cpu_flags()
    if flags:
        there = [flag for flag in _FLAGS if flag in flags]
        found.append(Finding("CPU flags", ", ".join(there) or "none of those that the kernels use"))
    found.append(Finding("threads by", _core.parallel_backend()))
    archs = ", ".join(_core.cuda_archs)
    found.append(Finding("CUDA kernels", f"built for {archs}" if archs else "not in this build"))
    return found


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def smoke() -> list[Finding]:
    """Compares one attention call over a small tree with the reference in float64."""
    import torch

    from tts_kernels import KVPool, KVTree, plan, tree_attention
    from tts_kernels.reference.tree_attention import tree_attention as reference

    heads, kv_heads, dim, pages = 6, 2, 64, 16
    random = torch.Generator().manual_seed(0)
    tree = KVTree(num_pages=pages)
    pool = KVPool(num_layers=1, num_kv_heads=kv_heads, head_dim=dim, num_pages=pages)
    keys, values = torch.zeros(2, pages * tree.page_size, kv_heads, dim)

    def append(branches: list[int], tokens: list[list[int]]) -> None:
        new = tree.append(branches, tokens)
        pool.copy(torch.from_numpy(new.copies))
        slots = torch.from_numpy(new.slots)
        k, v = torch.randn(2, len(slots), kv_heads, dim, generator=random)
        pool.append(0, k, v, slots)
        for source, target in new.copies.tolist():
            for slot_of in (keys, values):
                by_page = slot_of.view(pages, tree.page_size, kv_heads, dim)
                by_page[target] = by_page[source]
        keys[slots.long()], values[slots.long()] = k, v

    root = tree.create()
    append([root], [list(range(40))])
    branches = tree.fork(root, 4)
    append(branches, [[token] for token in range(4)])
    tables, lengths = tree.block_tables(branches)
    q = torch.randn(len(branches), heads, dim, generator=random)
    out, _ = tree_attention(q, *pool.layer(0), plan(tables, lengths))
    expected, _, _ = reference(
        q,
        keys,
        values,
        torch.from_numpy(tables),
        torch.from_numpy(lengths),
        torch.ones(len(branches), dtype=torch.int32),
    )
    difference = float((out.double() - expected).abs().max())
    told = f"attention of 4 branches differs by {difference:.1e} from the reference in float64"
    if not difference < 1e-4:
        return [Finding("attention", told, "broken", _REINSTALL, difference)]
    return [Finding("attention", told, value=difference)]


def threads() -> list[Finding]:
    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = _cpu_quota()
    found = [Finding("cores", f"{cores}, of which this process may use {allowed}", value=cores)]
    if quota is not None:
        found.append(Finding("container's limit", f"{quota:g} cores", value=quota))
    variable = os.environ.get("OMP_NUM_THREADS")
    found.append(Finding("OMP_NUM_THREADS", variable or "not set"))
    import torch

    used, most = torch.get_num_threads(), max(1, min(allowed, int(quota or allowed)))
    if used > most:
        remedy = f"export OMP_NUM_THREADS={most}: more threads than cores wait for each other"
        return [*found, Finding("torch's threads", str(used), "warning", remedy, used)]
    return [*found, Finding("torch's threads", str(used), value=used)]


def _cpu_quota() -> float | None:
    """Returns the number of cores the control group may use (Linux, version 2); None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory() -> list[Finding]:
    from tts_kernels.machine_memory import memory_bytes

    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    usable = memory_bytes()
    found = [Finding("machine", _gib(machine), value=machine)]
    if usable < machine:
        found.append(Finding("container's limit", _gib(usable), value=usable))
    free = _available()
    if free is not None:
        found.append(Finding("available now", _gib(free), value=free))
    return [*found, Finding("KV pages by default", f"{_gib(usable // 4)} (--kv-mib)")]


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def gpu() -> list[Finding]:
    """Reports the GPUs that torch finds, and the kernels that serve them."""
    import torch

    driver = _driver()
    if not torch.cuda.is_available():
        if driver is None:
            return [Finding("GPU", "none", "absent")]
        told = f"none that torch {torch.__version__} can use, though there is a driver ({driver})"
        return [Finding("GPU", told, "warning", "install torch's build for CUDA: https://pytorch.org")]
    found = [] if driver is None else [Finding("driver", driver)]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        told = f"{about.name}, {_gib(about.total_memory)}, compute capability {about.major}.{about.minor}"
        found.append(Finding(f"cuda:{index}", told))
    try:
        found.append(Finding("triton", distribution("triton").version))
    except PackageNotFoundError:
        found.append(Finding("triton", "not installed", "warning", "pip install 'tts-kernels[gpu]'"))
    return found


def _driver() -> str | None:
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "of unknown version")


def model_and_cache() -> list[Finding]:
    """Reports the default model, and the folder of converted copies."""
    from ..default_model import DEFAULT_MODEL, default_model_file
    from ..errors import ModelLoadError
    from ..model.gguf.cache import cache_folder

    try:
        found = [Finding(DEFAULT_MODEL, str(default_model_file()))]
    except ModelLoadError as error:
        command = str(error).partition("run: ")[2].removesuffix(" (or pass another model)")
        found = [Finding(DEFAULT_MODEL, "not installed; --model takes another", "absent", command)]
    try:
        folder = cache_folder()
    except ModelLoadError:
        return [*found, Finding("cache", "no home folder", "warning", "set XDG_CACHE_HOME, or HOME")]
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    told = f"{folder}, {_gib(free)} free"
    if not os.access(there, os.W_OK):
        return [*found, Finding("cache", f"{folder} cannot be written", "warning", "set XDG_CACHE_HOME")]
    if free < _LEAST_FREE:
        return [*found, Finding("cache", told, "warning", "free some space, or set XDG_CACHE_HOME")]
    return [*found, Finding("cache", told)]


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
