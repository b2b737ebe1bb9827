"""What actors must have in common, so that a search finds the same text on each of them."""

from __future__ import annotations

import platform
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tts_kernels import _core

from ..version import package_version

if TYPE_CHECKING:
    from ..decoding.decoder import TreeDecoder

_CHUNKS, _CHUNK = 256, 4096  # number and bytes of the samples taken from a large tensor


@dataclass(frozen=True)
class Identity:
    """What identifies an actor's software, model and hardware.

    tts_kernels to python: versions. model: class, dtype and size. weights, tokenizer: checksums.
    kv_dtype: of the KV pages. device: its type. isa: instruction-set level of the kernels on a CPU; levels
    differ in the last bits of results.
    """

    tts_kernels: str
    torch: str
    transformers: str
    python: str
    model: str
    weights: str
    tokenizer: str
    kv_dtype: str
    device: str
    isa: str

    def difference(self, other: Identity) -> str | None:
        """Returns the first difference in words: "weights 1234, there 5678"."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                return f"{field.name.replace('_', '-')} {mine}, there {theirs}"
        return None

    def unlike(self, own: str, other: Identity, first: str) -> str | None:
        """Returns why `own`, of this identity, does not run beside `first`, of the other; None if it may."""
        if (difference := other.difference(self)) is None:
            return None
        advice = _ADVICE.get(difference.partition(" ")[0], "install the same versions and files on all nodes")
        return (
            f"{own} is not like {first}, which has {difference}: the same search could find another text "
            f"there; {advice}"
        )


_ADVICE = {
    "isa": "set TTS_KERNELS_FORCE_CPU_ISA on all nodes to a level that all have, before ray start",
    "weights": "put the same model on all nodes",
    "model": "put the same model on all nodes",
}


def identity_of(decoder: TreeDecoder) -> Identity:
    model = decoder.model
    device = decoder.runtime.engine.device.type
    dtype = str(model.dtype).removeprefix("torch.")
    parameters = sum(tensor.numel() for _, tensor in _tensors(model))
    return Identity(
        tts_kernels=package_version(),
        torch=torch.__version__,
        transformers=_version("transformers"),
        python=".".join(platform.python_version_tuple()[:2]),
        model=f"{type(model).__name__} {dtype}, {parameters:,} numbers",
        weights=f"{weights_checksum(model):08x}",
        tokenizer=f"{_tokenizer_checksum(decoder.tokenizer):08x}",
        kv_dtype=str(decoder.runtime.pool.dtype).removeprefix("torch."),
        device=device,
        isa=_core.cpu_isa() if device == "cpu" else "",
    )


def weights_checksum(model: Any) -> int:
    """Returns a checksum of the model's weights.

    It covers the names, shapes and dtypes of all tensors, the bytes of small ones, and samples of the bytes
    of the others: another training changes it, a change of a few single numbers may not. Packed weights are
    read in their packed order.
    """
    checksum = 0
    for name, tensor in _tensors(model):
        checksum = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), checksum)
        for part in _samples(tensor):
            checksum = zlib.crc32(part.cpu().contiguous().numpy().tobytes(), checksum)
    return checksum


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _samples(tensor: Tensor) -> Iterator[Tensor]:
    """Yields samples of a tensor's bytes."""
    data = tensor.detach()
    if not data.numel():
        return
    if not data.is_contiguous():
        data = data.flatten()[: _CHUNKS * _CHUNK].contiguous()
    flat = data.view(-1).view(torch.uint8)
    if flat.numel() <= _CHUNKS * _CHUNK:
        yield flat
        return
    step = (flat.numel() - _CHUNK) // (_CHUNKS - 1)
    for start in range(0, _CHUNKS * step, step):
        yield flat[start : start + _CHUNK]


def _tokenizer_checksum(tokenizer: Any) -> int:
    vocabulary = (
        sorted(tokenizer.get_vocab().items()) if callable(getattr(tokenizer, "get_vocab", None)) else []
    )
    told = repr((vocabulary, getattr(tokenizer, "chat_template", None)))
    return zlib.crc32(told.encode(errors="surrogatepass"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
