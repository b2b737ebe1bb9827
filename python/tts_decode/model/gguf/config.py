"""The transformers config of the model in a GGUF file, from its header alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ...errors import ModelLoadError
from .blocks import file_tensors
from .header import Header
from .keys import NEUTRAL, REFUSED_NAMESPACES
from .names import tensor_names
from .particulars import of_architecture
from .rope import rope_parameters
from .text import shown
from .vocabulary import Vocabulary

_BLOCK = re.compile(r"^blk\.(\d+)\.")
_OF_ONE_EXPERT = re.compile(r"\.ffn_(gate|up|down)\.\d+\.weight$")
_MOST_BLOCKS = 10_000
_MOST_WEIGHTS_A_BYTE = 8  # the smallest of GGUF's formats takes 1.5 bits a weight


def config_of(header: Header) -> Any:
    """Returns the config. Raises ModelLoadError for a key, a value or a tensor that would be lost."""
    _refuse_keys(header)
    attributes = _attributes(header)
    _refuse_tensors(header, attributes)
    return AutoConfig.for_model(**attributes)


def _refuse_keys(header: Header) -> None:
    architecture = header.architecture
    if header.metadata.get("general.type", "model") != "model":
        raise header.refuse("general.type", "'model'")
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise header.refuse("split.count", "one whole file; join the parts with llama-gguf-split --merge")
    alignment = header.metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise header.refuse("general.alignment", "a power of two")
    for path in header.metadata:
        namespace, _, key = path.partition(".")
        if namespace in REFUSED_NAMESPACES:
            raise header.refuse(path, "no such key: what it does is not served")
        if namespace != header.name:
            continue
        if not architecture.knows(key):
            raise header.refuse(path, f"no such key: what it does to a model of {header.name} is not known")
        if key in architecture.neutral:
            _refuse_unless_neutral(header, key, architecture.neutral[key])
        elif key in NEUTRAL and not architecture.serves(key):
            _refuse_unless_neutral(header, key, NEUTRAL[key])


def _refuse_unless_neutral(header: Header, key: str, neutral: float | str) -> None:
    value = header.metadata[header.path(key)]
    if isinstance(value, bool) is not isinstance(neutral, bool) or value != neutral:
        raise header.refuse(
            header.path(key), f"{neutral!r} or no such key: other values are not served for {header.name}"
        )


def _attributes(header: Header) -> dict[str, Any]:
    """Returns arguments for `AutoConfig.for_model`."""
    architecture = header.architecture
    layers = header.integer("block_count", high=_MOST_BLOCKS)
    heads = header.integer("attention.head_count")
    vocabulary = Vocabulary.read(header)
    ends = vocabulary.ends
    attributes: dict[str, Any] = {
        "model_type": architecture.model_type,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": len(vocabulary.tokens),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": vocabulary.named["bos"],
        "pad_token_id": vocabulary.named["padding"],
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        **architecture.fixed,
    }
    for key, name in architecture.integers.items():
        if key in header or key not in architecture.optional:
            attributes[name] = header.integer(key)
    for key, name in architecture.numbers.items():
        if key in header or key not in architecture.optional:
            attributes[name] = header.number(key)
    for name, tensor in architecture.switches.items():
        attributes[name] = tensor in header.tensors
    head_dim = _head_dim(header, heads)
    if architecture.rotary:
        # transformers undoes the order of Q and K rows only if the file states both counts.
        default = None if header.name == "llama" else heads
        attributes["num_key_value_heads"] = header.integer("attention.head_count_kv", default)
        attributes["head_dim"] = head_dim
        attributes |= _rotary(header, head_dim)
    elif header.integer("attention.head_count_kv", heads) != heads:
        raise header.refuse(header.path("attention.head_count_kv"), f"{heads}, as many as heads")
    attributes |= of_architecture(header, head_dim, attributes)
    expected = attributes.get(
        "attention_multiplier", attributes.get("query_pre_attn_scalar", head_dim) ** -0.5
    )
    scale = header.number("attention.scale", 0.0, zero=True)  # 0 means the architecture's default
    if scale and not math.isclose(scale, expected, rel_tol=1e-5):
        raise header.refuse(header.path("attention.scale"), f"{expected:.6g}, or no such key")
    return attributes


def _head_dim(header: Header, heads: int) -> int:
    hidden = header.integer("embedding_length")
    if hidden % heads:  # transformers refuses such configs too
        raise header.refuse(header.path("attention.head_count"), f"a divisor of embedding_length ({hidden})")
    head_dim = header.integer("attention.key_length", hidden // heads)
    if not header.architecture.rotary and head_dim * heads != hidden:
        raise header.refuse(
            header.path("attention.key_length"), f"{hidden // heads}, embedding_length / heads"
        )
    if header.integer("attention.value_length", head_dim) != head_dim:
        raise header.refuse(header.path("attention.value_length"), f"{head_dim}, as long as keys")
    return head_dim


def _rotary(header: Header, head_dim: int) -> dict[str, Any]:
    architecture = header.architecture
    rotated = header.integer("rope.dimension_count", head_dim, high=head_dim)
    if rotated % 2 or (rotated != head_dim and not architecture.partial_rotary):
        raise header.refuse(
            header.path("rope.dimension_count"),
            f"an even number up to {head_dim}"
            if architecture.partial_rotary
            else f"{head_dim}, a whole head, even",
        )
    factors = _rotary_factors(header, rotated // 2)
    attributes: dict[str, Any] = {"rope_parameters": rope_parameters(header, rotated // 2, factors)}
    if architecture.partial_rotary:
        fraction = rotated / head_dim
        if int(head_dim * fraction) != rotated:
            raise header.refuse(
                header.path("rope.dimension_count"), f"a number that its fraction of {head_dim} gives back"
            )
        attributes["partial_rotary_factor"] = fraction
    return attributes


def _rotary_factors(header: Header, pairs: int) -> dict[str, list[float]]:
    """Returns the file's tensors of rotary factors, float64, checked."""
    names = header.architecture.rotary_tensors & header.tensors
    if not names:
        return {}
    factors = {}
    for tensor in file_tensors(header):
        if tensor.name in names:
            values = [float(value) for value in tensor.numbers().ravel()]
            if len(values) != pairs or not all(math.isfinite(value) and value > 0 for value in values):
                raise ModelLoadError(
                    f"model: {header.file} cannot be read right: {tensor.name} must hold {pairs} finite "
                    "numbers above 0, half the rotated dimensions of a head; fetch the file again"
                )
            factors[tensor.name] = values
    return factors


def _refuse_tensors(header: Header, attributes: Mapping[str, Any]) -> None:
    """Raises ModelLoadError if the file has a tensor that the model does not use, or lacks a required one."""
    layers = attributes["num_hidden_layers"]
    layout = _layout(header, attributes)
    numbers = sum(size * (layers if _BLOCK.match(name) else 1) for name, size in layout.items())
    if numbers > header.file.stat().st_size * _MOST_WEIGHTS_A_BYTE:
        raise ModelLoadError(
            f"model: {header.file} is damaged: its keys describe a model of {numbers} weights, "
            "which the file is too small for; fetch it again"
        )
    wanted = {
        _BLOCK.sub(f"blk.{layer}.", name)
        for name in layout
        for layer in range(layers if _BLOCK.match(name) else 1)
    }
    if single := [name for name in header.tensors if _OF_ONE_EXPERT.search(name)]:
        raise ModelLoadError(
            f"model: {header.file} holds {shown(min(single))}, the weight of a single expert, as llama.cpp "
            "wrote them before 2024, which is not served: convert the model again, or use safetensors"
        )
    if lost := header.tensors - wanted - header.architecture.rotary_tensors:
        raise ModelLoadError(
            f"model: {header.file} holds the tensor {shown(min(lost))}, which a {header.name} of {layers} "
            "layers in transformers does not take: its part of the arithmetic would be lost; use safetensors"
        )
    if missing := wanted - header.tensors:
        raise ModelLoadError(
            f"model: {header.file} lacks the tensor {min(missing)}, which a {header.name} of {layers} layers "
            "needs; it may be cut short: fetch it again"
        )


def _layout(header: Header, attributes: Mapping[str, Any]) -> dict[str, int]:
    """Returns the GGUF tensors that transformers reads for a one-layer model, and their number of weights."""
    one = {**attributes, "num_hidden_layers": 1}
    if "layer_types" in one:
        one["layer_types"] = one["layer_types"][:1]
    with torch.device("meta"):
        config = AutoConfig.for_model(**one)
        model = AutoModelForCausalLM.from_config(config)
    sizes = {name: weight.numel() for name, weight in model.state_dict().items()}
    counted: set[str] = set()
    layout = {}
    for name, target in tensor_names(header, model).items():
        layout[name] = 0 if target in counted else sizes.get(target, 0)
        counted.add(target)
    if attributes["tie_word_embeddings"]:
        layout.pop("output.weight", None)
    return layout
