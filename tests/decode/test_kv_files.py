"""KV in files: what comes back is what was computed, and nothing else is taken for it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from file_sizes import files_of_at_most
from primitives import PROMPT, make, pages
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from transformers import PreTrainedModel
from tts_decode import KVFileError, KVOffload, OutOfPagesError, SamplingParams, SparseConfig, TreeDecoder

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLING = SamplingParams(seed=5, max_tokens=200)
LONG = (PROMPT * 4)[:150]


async def grow(decoder: TreeDecoder) -> tuple[list[list[int]], list[list[float]]]:
    root = await decoder.root(LONG, SAMPLING)
    children = root.fork(3)
    for child in children:
        await child.step(max_step_tokens=20)
    told = [list(child.tokens) for child in children], [list(child.logprobs) for child in children]
    for branch in (root, *children):
        branch.release()
    return told


@pytest.fixture
def saved(model: PreTrainedModel, tmp_path: Path) -> Path:
    """A pin of 150 tokens and a branch of 170 that goes on from it: 9 pages of both, the tail of the one, 2
    more of the other."""
    decoder, path = make(model), tmp_path / "prefixes.kv"

    async def run() -> None:
        root = await decoder.root(LONG, SAMPLING)
        (child,) = root.fork(1)
        await child.step(max_step_tokens=21)
        decoder.save_kv(path, [decoder.pin(root), child])
        root.release()
        child.release()

    asyncio.run(run())
    return path


@pytest.mark.parametrize("settings", ["float32", "int8", "sparse", "offloaded"])
def test_a_later_decoder_goes_on_from_the_file(model: PreTrainedModel, settings: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "float32": {},
        "int8": {"kv_dtype": torch.int8},
        "sparse": {"sparse": SparseConfig(budget=4, recent=1)},
        "offloaded": {"kv_bytes": 14 * make(model).stats().page_bytes, "kv_offload": KVOffload(1 << 22)},
    }[settings]
    path = tmp_path / "prefix.kv"
    first = make(model, **options)

    async def save() -> tuple[list[list[int]], list[list[float]]]:
        told = await grow(first)
        root = await first.root(LONG, SAMPLING)
        other = await first.root([7] * 150, SAMPLING)  # with "offloaded" some of root's pages are elsewhere
        first.save_kv(path, [root])
        root.release()
        other.release()
        return told

    expected = asyncio.run(save())
    later = make(model, **options)

    async def go_on() -> tuple[list[list[int]], list[list[float]]]:
        (pin,) = later.load_kv(path)
        assert pin.tokens == LONG
        assert later.stats().forward_tokens == 0  # the digest's tokens are no search's
        root = await later.root(LONG, SAMPLING)
        assert root.cached_tokens == len(LONG) - 1
        root.release()
        return await grow(later)

    assert asyncio.run(go_on()) == expected


def test_shared_pages_are_in_it_once(model: PreTrainedModel, saved: Path) -> None:
    tensors = load_file(saved)
    assert tensors["lengths"].tolist() == [150, 170]
    assert len(tensors["pages"]) == 9 + 2 + 1
    decoder = make(model)
    pins = decoder.load_kv(saved)
    assert pages(decoder) == 12
    assert [len(pin.tokens) for pin in pins] == [150, 170]
    assert decoder.load_kv(saved)[1].tokens == pins[1].tokens  # again: what is resident is shared
    assert pages(decoder) <= 14  # but for the tails
    for pin in pins:
        pin.release()


def test_what_cannot_be_found_again_is_left_out(model: PreTrainedModel, tmp_path: Path) -> None:
    decoder = make(model, track_mass=True)
    path = tmp_path / "x.kv"

    async def run() -> None:
        root = await decoder.root(LONG, SAMPLING)
        await root.step(max_step_tokens=3)
        decoder.evict([root], keep=8, sink=3, recent=4)
        decoder.save_kv(path, [root])
        assert load_file(path)["lengths"].tolist()[0] % 16 == 0  # up to the first page that went
        embedded = await decoder.root([1, 2], SAMPLING)
        embedded.release()
        with pytest.raises(Exception, match="released"):
            decoder.save_kv(path, [embedded])
        root.release()

    asyncio.run(run())


def test_another_model_is_refused(model: PreTrainedModel, saved: Path) -> None:
    torch.manual_seed(8)
    changed = tiny_model()
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():  # one weight, as far from the start as a key or value sees
        changed.model.layers[-1].self_attn.v_proj.weight[0, 0] += 0.01
    assert len(make(model).load_kv(saved)) == 2
    for other in (make(changed), make(model, kv_dtype=torch.int8), make(model, sparse=SparseConfig())):
        with pytest.raises(KVFileError, match=r"prefixes.kv: its (KV was computed by another|pages)"):
            other.load_kv(saved)
        assert (other.stats().pins, other.stats().resident_bytes) == (0, 0)


def test_damaged_files_are_refused(model: PreTrainedModel, saved: Path) -> None:
    whole = saved.read_bytes()
    generator = torch.Generator().manual_seed(1)
    decoder = make(model)
    for _ in range(60):
        at = int(torch.randint(len(whole), (), generator=generator))
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        with pytest.raises(KVFileError, match=r"prefixes\.kv"):
            decoder.load_kv(saved)
        saved.write_bytes(whole[:at])
        with pytest.raises(KVFileError, match=r"prefixes\.kv"):
            decoder.load_kv(saved)
    saved.unlink()
    with pytest.raises(KVFileError, match=r"prefixes.kv is no file of save_kv.* No such file"):
        decoder.load_kv(saved)
    assert (decoder.stats().pins, decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0, 0)


@pytest.mark.timeout(60)
def test_only_plain_files_are_read_and_replaced(model: PreTrainedModel, tmp_path: Path) -> None:
    """Reading a pipe would wait for its writer for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    decoder = make(model)
    for special in (pipe, tmp_path):
        with pytest.raises(KVFileError, match=r"is no file of save_kv.*it is not a plain file"):
            decoder.load_kv(special)

    async def save() -> None:
        root = await decoder.root([3] * 40, SAMPLING)
        with pytest.raises(KVFileError, match=r"cannot be written.*it is not a plain file"):
            decoder.save_kv(pipe, [root])
        root.release()

    asyncio.run(save())
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]
    assert pipe.is_fifo()


def test_others_may_read_it_as_the_umask_says(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    assert saved.stat().st_mode == (tmp_path / "other").stat().st_mode


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """As a forger makes it."""
    digest = hashlib.sha256()
    for name in ("pages", "tokens", "lengths", "columns"):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"columns": torch.tensor([99] * 21, dtype=torch.int32)},
        {"columns": torch.tensor([-1] * 21, dtype=torch.int32)},
        {"lengths": torch.tensor([320, 0], dtype=torch.int32)},
        {"lengths": torch.tensor([-150, 470], dtype=torch.int32)},
        {"tokens": torch.full((320,), 2**31 - 1, dtype=torch.int32)},
        {"tokens": torch.zeros(320)},
        {"pages": torch.zeros(12, 7, dtype=torch.uint8)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_forged_file_is_refused(model: PreTrainedModel, saved: Path, change: dict[str, Any]) -> None:
    """One whose digest fits."""
    size = struct.unpack("<Q", saved.read_bytes()[:8])[0]
    told = json.loads(saved.read_bytes()[8 : 8 + size])["__metadata__"]
    tensors = load_file(saved) | change
    save_file(tensors, saved, told | {"digest": digest_of(tensors)})
    decoder = make(model)
    with pytest.raises(KVFileError, match="do not fit together"):
        decoder.load_kv(saved)
    assert (decoder.stats().pins, decoder.stats().resident_bytes) == (0, 0)


def test_a_failed_call_changes_nothing(model: PreTrainedModel, saved: Path, tmp_path: Path) -> None:
    size = make(model).stats().page_bytes
    small = make(model, kv_bytes=11 * size)

    async def run() -> None:
        held = await small.root([3] * 40, SAMPLING)
        with pytest.raises(OutOfPagesError):
            small.load_kv(saved)
        assert (small.stats().pins, pages(small)) == (0, 3)
        before = saved.read_bytes()
        with (
            files_of_at_most(1 << 10),
            pytest.raises(KVFileError, match="cannot be written"),
        ):
            small.save_kv(saved, [held])
        assert saved.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["prefixes.kv"]
        with pytest.raises(TypeError, match="prefixes: got int, expected Branch and Pin objects"):
            small.save_kv(saved, [3])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="prefixes: got none, expected at least one"):
            small.save_kv(saved, [])
        for unusable in (tmp_path / ("x" * 300), tmp_path, Path("/"), saved / "in-a-file"):
            with pytest.raises(KVFileError, match="cannot be written"):
                small.save_kv(unusable, [held])
        small.save_kv(tmp_path / ("x" * 240), [held])  # a name may be as long as the system takes
        (tmp_path / ("x" * 240)).unlink()
        assert [file.name for file in tmp_path.iterdir()] == ["prefixes.kv"]
        pin = small.pin(held)
        pin.release()
        with pytest.raises(ValueError, match=r"prefixes: got Pin\(.*dropped"):
            small.save_kv(saved, [pin])
        with pytest.raises(ValueError, match="of another decoder"):
            make(model).save_kv(saved, [held])
        held.release()

    asyncio.run(run())


def test_two_writers_leave_a_whole_file(model: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "both.kv"

    async def hold(decoder: TreeDecoder, token: int) -> None:
        root = await decoder.root([token] * 200, SAMPLING)
        for _ in range(5):
            decoder.save_kv(path, [root])
        root.release()

    threads = [threading.Thread(target=lambda t=t: asyncio.run(hold(make(model), t))) for t in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (pin,) = make(model).load_kv(path)
    assert pin.tokens in ([1] * 200, [2] * 200)


def test_another_process_finds_it(tmp_path: Path) -> None:
    """The default model's identity does not depend on the process."""
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "helpers")!r})
from primitives import make
from tiny_models import tiny_model
decoder = make(tiny_model())
async def run():
    root = await decoder.root([5] * 100)
    decoder.save_kv({str(tmp_path / "p.kv")!r}, [root])
asyncio.run(run())
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    (pin,) = make(tiny_model()).load_kv(tmp_path / "p.kv")
    assert pin.tokens == [5] * 100
