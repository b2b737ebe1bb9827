"""Operators refuse bad input on plain pages, and a refused call changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from paged_cases import make_paged_case
from torch import Tensor

from tts_kernels import KVPool, append_kv, copy_pages, gather_kv, plan, tree_attention
from tts_kernels.backends import choice

Refused = tuple[type[Exception], str, Callable[[], object]]


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """The choice of a backend is made once for each device, dtype and head_dim."""
    choice.choose.cache_clear()
    choice._launcher.cache_clear()
    yield
    choice.choose.cache_clear()
    choice._launcher.cache_clear()


def check(refused: list[Refused]) -> None:
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()


def test_storage(device: torch.device) -> None:
    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    pool = KVPool(
        num_layers=2, num_kv_heads=3, head_dim=48, num_pages=6, page_size=8, device=device, layout="HND"
    )
    for pages in (pool.k_pages, pool.v_pages):
        pages.fill_(torch.nan)
    k = v = torch.zeros((2, 3, 48), device=device)
    k_pages, v_pages = pool.layer(0)
    meta = v_pages.to("meta")
    pair = ints(0, 1).view(1, 2)
    apart = (k_pages[..., ::2], v_pages[..., ::2])
    refused: list[Refused] = [
        (
            ValueError,
            r"slots: got shape \[1\], expected \[T\] = \[2\]",
            lambda: pool.append(0, k, v, ints(1)),
        ),
        (TypeError, "slots.*int64", lambda: pool.append(0, k, v, ints(0, 1).long())),
        (ValueError, "slots.*shape", lambda: pool.append(0, k, v, ints(1, 2)[None])),
        (TypeError, "k: .*bfloat16", lambda: pool.append(0, k.bfloat16(), v, ints(1, 2))),
        (ValueError, "v: .*shape", lambda: pool.append(0, k, v[:, :2], ints(1, 2))),
        (ValueError, "v: .*strides", lambda: pool.append(0, k, v.mT.contiguous().mT, ints(1, 2))),
        (ValueError, "k: .*meta, expected cpu or cuda", lambda: pool.append(0, k.to("meta"), v, ints(1, 2))),
        (ValueError, "slots: .*meta", lambda: pool.append(0, k, v, ints(1, 2).to("meta"))),
        (TypeError, "slots: got list", lambda: pool.append(0, k, v, [1, 2])),  # type: ignore[arg-type]
        (ValueError, "v_pages: .*meta", lambda: gather_kv(k_pages, meta, ints(0), 1)),
        (ValueError, "copies.*shape", lambda: pool.copy(ints(0, 1, 2))),
        (ValueError, "copies.*strides", lambda: pool.copy(ints(0, 1, 2, 3).view(2, 2).T)),
        (ValueError, "length: got 17, .*P = 2, page_size = 8", lambda: pool.gather(0, ints(0, 1), 17)),
        (ValueError, "length: got -1", lambda: pool.gather(0, ints(0, 1), -1)),
        (ValueError, "v_pages: got shape", lambda: gather_kv(k_pages, v_pages[:4], ints(0), 1)),
        (ValueError, "k_pages: got shape", lambda: copy_pages(k_pages, v_pages, pair)),
        (TypeError, "k_pages: .*float64", lambda: append_kv(k, v, k_pages.double(), v_pages, ints(0))),
        (ValueError, "k_pages.*strides", lambda: gather_kv(*apart, ints(0), 1)),
        (ValueError, "head_dim = 12,", lambda: gather_kv(k_pages[..., :12], v_pages[..., :12], ints(0), 1)),
    ]
    check(refused)
    assert pool.k_pages.isnan().all()
    assert pool.v_pages.isnan().all()


def test_attention(device: torch.device) -> None:
    case = make_paged_case([40, 35], [(0, 0), (0, 32)], [2, 1], device=device)
    q, k, v, good = case.q, case.k_pages, case.v_pages, case.plan()
    packed_plan = plan(case.tables, case.lengths, case.query_lens)

    def attend(**changes: object) -> object:
        return tree_attention(q, k, v, replace(good, **changes))

    def options(**chosen: float) -> object:
        return tree_attention(q, k, v, good, **chosen)

    refused: list[Refused] = [
        (ValueError, "DevicePlanner", lambda: tree_attention(q, k, v, packed_plan)),
        (TypeError, "plan: got NoneType", lambda: tree_attention(q, k, v, None)),  # type: ignore[arg-type]
        (ValueError, "window: got 0", lambda: options(window=0)),
        (ValueError, "logits_soft_cap: got 0", lambda: options(logits_soft_cap=0.0)),
        (ValueError, "logits_soft_cap: got nan", lambda: options(logits_soft_cap=float("nan"))),
        (ValueError, "logits_soft_cap: got inf", lambda: options(logits_soft_cap=float("inf"))),
        (ValueError, "scale: got -1", lambda: options(scale=-1.0)),
        (ValueError, "scale: got inf", lambda: options(scale=float("inf"))),
        (TypeError, "q: .*bfloat16", lambda: tree_attention(q.bfloat16(), k, v, good)),
        (
            TypeError,
            r"k_pages: got torch\.float16, expected torch\.float32 as planned",
            lambda: tree_attention(q.half(), k.half(), v.half(), good),
        ),
        (ValueError, "q: .*shape", lambda: tree_attention(q[:, :, :32], k, v, good)),
        (ValueError, "q: .*shape", lambda: tree_attention(q[:, :2], k, v, good)),
        (ValueError, "q: .*shape", lambda: tree_attention(q[:2], k, v, good)),
        (ValueError, "q: .*strides", lambda: tree_attention(q.mT.contiguous().mT, k, v, good)),
        (TypeError, "q: got list", lambda: tree_attention([1], k, v, good)),  # type: ignore[arg-type]
        (ValueError, "q: .*meta", lambda: tree_attention(q.to("meta"), k, v, good)),
        (ValueError, "v_pages: .*meta", lambda: tree_attention(q, k, v.to("meta"), good)),
        (ValueError, "k_pages: .*shape", lambda: tree_attention(q, k[:4], v[:4], good)),
        (ValueError, "v_pages: got shape", lambda: tree_attention(q, k, v[:-1], good)),
        (TypeError, "v_pages: .*float16", lambda: tree_attention(q, k, v.half(), good)),
        (ValueError, "k_pages: .*shape.*planned", lambda: attend(page_size=32)),
        (ValueError, "q: .*shape.*planned", lambda: attend(num_q_heads=2)),
        (ValueError, "k_pages: .*shape.*planned", lambda: attend(num_kv_heads=1)),
        (ValueError, r"plan\.work: .*meta", lambda: attend(work=good.work.to("meta"))),
        (ValueError, "work: got work_ints = ", lambda: attend(work=good.work[:-1])),
        (TypeError, "work: got torch.int64", lambda: attend(work=good.work.long())),
        (ValueError, "work: got strides", lambda: attend(work=torch.stack([good.work] * 2, 1)[:, 0])),
        (ValueError, "partials: got partial_floats", lambda: attend(partials=good.partials[:-1])),
        (TypeError, "partials: got torch.float16", lambda: attend(partials=good.partials.half())),
        (ValueError, "num_items: got 17", lambda: attend(num_items=good.capacity.items + 1)),
    ]
    check(refused)


def test_heads_must_divide(device: torch.device) -> None:
    case = make_paged_case([40], [(0, 0)], [1], device=device)
    plan = case.plan()
    with pytest.raises(ValueError, match="q: got num_q_heads = 3, num_kv_heads = 2, expected"):
        torch.ops.tts_kernels.tree_attention_work(
            case.q[:, :3].contiguous(), case.k_pages, case.v_pages, *plan.launch, 1.0, None, None
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_different_devices() -> None:
    case = make_paged_case([40], [(0, 0)], [1], device=torch.device("cuda"))
    q, k, v, good = case.q, case.k_pages, case.v_pages, case.plan()
    on_cpu = make_paged_case([40], [(0, 0)], [1], device=torch.device("cpu"))
    packed_plan = plan(case.tables, case.lengths, case.query_lens)
    check(
        [
            (ValueError, "q: .*cpu, expected cuda:0", lambda: tree_attention(q.cpu(), k, v, good)),
            (ValueError, "v_pages: .*cpu, expected cuda:0", lambda: tree_attention(q, k, v.cpu(), good)),
            (
                ValueError,
                r"plan\.work: .*cpu, expected cuda:0",
                lambda: tree_attention(q, k, v, on_cpu.plan()),
            ),
            (ValueError, "plan: got a TreePlan .*cuda", lambda: tree_attention(q, k, v, packed_plan)),
            (
                ValueError,
                r"plan\.work: .*cuda:0, expected cpu",
                lambda: tree_attention(on_cpu.q, on_cpu.k_pages, on_cpu.v_pages, good),
            ),
        ]
    )


def test_the_forced_backend(
    device: torch.device, fresh_choice: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = torch.zeros((1, 1, 16, 80), device=device)
    monkeypatch.setenv("TTS_KERNELS_BACKEND", "rocm")
    with pytest.raises(ValueError, match="TTS_KERNELS_BACKEND: got 'rocm', expected 'triton' or 'cuda'"):
        choice.kernel("append_kv", pages)
    monkeypatch.setenv("TTS_KERNELS_BACKEND", "cuda")
    if device.type == "cuda":
        with pytest.raises(ValueError, match="TTS_KERNELS_BACKEND: got 'cuda', "):
            choice.kernel("tree_attention", pages)
    monkeypatch.setenv("TTS_KERNELS_BACKEND", "triton")
    choice.choose.cache_clear()
    assert choice.kernel("append_kv", pages) is not None


def test_triton_is_missing(device: torch.device, fresh_choice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("tts_kernels.backends.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match=r"append_kv: .*pip install 'tts-kernels\[gpu\]'"):
        choice.kernel("append_kv", torch.zeros((1, 1, 16, 64), device=device))


def test_plain_pages_on_the_cpu_without_the_interpreter() -> None:
    """Nor does importing the package import Triton."""
    pytest.importorskip("triton")
    code = """
import sys, torch, tts_kernels
assert "triton" not in sys.modules
pool = tts_kernels.KVPool(num_layers=1, num_kv_heads=1, head_dim=64, num_pages=2, layout="NHD")
try:
    pool.gather(0, torch.zeros(1, dtype=torch.int32), 3)
except ValueError as error:
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "TRITON_INTERPRET=1" in done.stdout, done.stderr
