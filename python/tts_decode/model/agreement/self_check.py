"""Whether a decoder computes what the model itself does, seen before anything is served.

The model's own plain forward of a few random texts is compared with the tree's: chunked prefill, a fork in
the middle of a page with ragged branches, decode steps, a truncation (`check_program.py`). Three measures
keep rounding from hiding a fault, and from being mistaken for one:

* Each layer is compared separately: it gets its input from the plain forward, so that nothing accumulates
  over the layers.
* It is compared in float32, whatever the dtype of the weights. They are cast layer by layer: a model in
  bfloat16 needs only the additional memory of one of its layers in float32.
* Experts are those that the plain forward chose: `torch.topk` returns its recorded results again.

A weight that is still constant, as norms, biases and gates are initialised, can hide that it is not applied.
So it gets noise, the same in both forwards (`substitution.py`). The alternative, a small random copy of the
model, would miss what is served, such as adapters and patched modules, and would depend on the model's class.

Positions are compared twice: as the model counts them itself from 0 on, and, passed to it, at the end of its
range, past every threshold on the way. What depends on a token's place in the sequence only affects texts
longer than these: attention masks are requested at all lengths (`masks.py`), settings are checked by name
(`features.py`), and an attention that counts its rows itself is refused here, unless a forward in
`own_forwards.py` replaces it by one that uses positions: it is then told where rows at high positions are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ..hf import HFEngine
from ..hooks import changing_hooks
from ..quantised_modules import Quantised
from ..support.length_settings import refuse_length_settings
from .check_program import CheckProgram, special_tokens
from .compared_paths import Comparison, GeneralPath, PackedPath
from .differences import Differences
from .layer_calls import layers_of
from .plain_forward import PlainForward
from .substitution import Weights

_SMALL = 300_000_000  # parameters of a model that is compared on one thread


@dataclass(frozen=True)
class SelfCheck:
    """The result of a check.

    Attributes:
        seconds: its duration.
        difference: the largest, relative to what a layer adds to its input, or to a row's largest logit.
        place: where it was.
        tolerance: what is allowed there.
        paths: those compared: "general", the model's modules, and "packed", if there are packed weights.
    """

    seconds: float
    difference: float
    place: str
    tolerance: float
    paths: tuple[str, ...]


def check_agreement(engine: HFEngine, *, on_host: bool) -> SelfCheck:
    """Compares the engine's forwards with the model's own; an unchanged model is compared once.

    on_host: whether the CPU's kernels and page layout serve, rather than a GPU's.

    Raises:
        UnsupportedModelError: they disagree, or cannot be compared.
    """
    model = engine.model
    refuse_length_settings(model)
    if not CheckProgram.fits(engine.max_positions):
        raise UnsupportedModelError(
            f"{type(model).__name__} has {engine.max_positions} positions, too few for the self-check: pass "
            "check=False to use it unchecked"
        )
    key = _fingerprint(engine, on_host)
    known = _checked.get(model)
    if known is not None and key is not None and known[0] == key:
        return known[1]
    started = time.perf_counter()
    try:
        with torch.inference_mode(), _full_float32(), _threads_for(engine):
            check = _compare(engine, on_host)
    except (UnsupportedModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be compared with its own forward ({type(error).__name__}: "
            f"{error}): pass check=False to use it unchecked"
        ) from error
    paths = ("general", "packed") if engine.packed is not None else ("general",)
    done = SelfCheck(time.perf_counter() - started, check.worst, check.place, check.tolerance, paths)
    if key is not None:
        _checked[model] = key, done
    return done


_checked: WeakKeyDictionary[Any, tuple[Any, SelfCheck]] = WeakKeyDictionary()


def _fingerprint(engine: HFEngine, on_host: bool) -> Any:
    """Returns what a check depends on; None if changes of the weights cannot be detected."""
    model = engine.model
    if any(weight.is_inference() for weight in [*model.parameters(), *model.buffers()]):
        return None
    return (
        on_host,
        engine.packed is not None,
        engine.calls,
        engine.config._attn_implementation,
        engine.weights.epoch,
        [
            (
                type(module),
                id(vars(module).get("forward")),
                *changing_hooks(module),
            )
            for module in model.modules()
        ],
    )


@contextmanager
def _full_float32() -> Iterator[None]:
    """Computes float32 products at full precision on GPUs too."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def _threads_for(engine: HFEngine) -> Iterator[None]:
    """Uses one thread for small models.

    Their products gain little from more, which wait for each other on a busy machine (SmolLM2-135M on 2 cores
    at a load of 6: 1.7 s with one thread, 6 to 15 s with two).
    """
    before = torch.get_num_threads()
    if engine.shape.parameters < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compare(engine: HFEngine, on_host: bool) -> Differences:
    model = engine.model
    runs = model if engine.has_lm_head else engine.base
    layers = layers_of(runs, engine.attention_modules)
    quantised = any(type(weight.data) is not Tensor for weight in model.parameters())
    exact = not quantised and not getattr(model, "is_quantized", False)
    dtype = torch.float32 if exact else engine.dtype
    compared = _layers_of_each_kind(engine, layers)
    head = model.get_output_embeddings()
    weights = Weights(runs, layers, head, exact=exact, dequantised=compared)
    avoid = special_tokens(model.config) | special_tokens(engine.config)
    chunks = {call.chunk for call in engine.calls if call.chunk is not None}
    program = CheckProgram(engine.config.vocab_size, avoid, engine.max_positions, chunks)
    differences = Differences(type(model).__name__, dtype)
    with weights.rest():
        plain = PlainForward(engine, layers, weights, program)
        comparison = Comparison(engine, layers, weights, program, plain, differences, dtype, on_host)
        paths: list[GeneralPath | PackedPath] = [GeneralPath(comparison)]
        if engine.packed is not None:
            paths.append(PackedPath(comparison, engine.packed))
        for layer in compared:
            with weights.layer(layer):
                plain.finish(layer)
                for path in paths:
                    path.compare(layer)
    return differences


def _layers_of_each_kind(engine: HFEngine, layers: list[nn.Module]) -> list[int]:
    """Returns the layers to compare: all, or the first of each kind for quantised weights.

    Layers with quantised weights are dequantised for the comparison.
    """
    known = set()
    chosen = []
    for index, layer in enumerate(layers):
        quantised = any(isinstance(module, Quantised) for module in layer.modules())
        kind = (engine.calls[index], *map(_kind, layer.named_modules())) if quantised else index
        if kind not in known:
            known.add(kind)
            chosen.append(index)
    return chosen


def _kind(named: tuple[str, nn.Module]) -> Any:
    """Returns what a part of a layer is, apart from its weights and its place."""
    name, module = named
    form = (module.form, module.quantised.order is None) if isinstance(module, Quantised) else None
    settings = {
        (key, value)
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and key != "layer_idx"
    }
    return name, type(module), form, frozenset(settings)
