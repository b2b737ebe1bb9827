"""Calls of products, norms and the sampler, and of packing weights."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

import tts_kernels as tk
from fuzz import expected
from fuzz.cases import FLOATS, Case, copy_of, ints
from tts_kernels import reference


def rms_norm(rng: random.Random) -> Case:
    n = rng.randint(1, 40)
    args = {"x": torch.randn(rng.randint(0, 5), n), "weight": torch.randn(n), "eps": 1e-5}

    def check(a: dict[str, Any], out: Tensor) -> None:
        expected.close(out, reference.rms_norm(a["x"], a["weight"], float(a["eps"])), torch.float32)

    return Case(tk.rms_norm, args, check)


def weight_of(rng: random.Random, inputs: int, outputs: int | None = None) -> tk.PackedWeight:
    dtype, outputs = rng.choice(FLOATS), outputs or rng.randint(1, 40)
    if rng.random() < 0.3:
        gate, up = torch.randn(2, outputs, inputs).to(dtype)
        return tk.PackedWeight.pack_gated(gate, up)
    return tk.PackedWeight.pack(
        torch.randn(outputs, inputs).to(dtype), torch.randn(outputs) if rng.random() < 0.5 else None
    )


def packed_linear(rng: random.Random) -> Case:
    rows, inputs = rng.randint(0, 5), 2 * rng.randint(1, 20)
    weight = weight_of(rng, inputs)
    args: dict[str, Any] = {"x": torch.randn(rows, inputs).to(rng.choice(FLOATS)), "weight": weight}
    args |= {"add_to": None, "out": None}
    if rng.random() < 0.5:
        args["out"] = torch.full((rows, weight.columns), torch.nan)
    elif not weight.gated and weight.columns == weight.outputs:
        args["add_to"] = torch.zeros(rows, weight.columns)

    def call(x: Any, weight: Any, add_to: Any, out: Any) -> Any:
        return copy_of(add_to), copy_of(x), tk.packed_linear(x, weight, add_to=add_to, out=out)

    def check(a: dict[str, Any], result: Any) -> None:
        before, x, out = result
        if x is None:
            return  # lazily zero or negated, which torch's dispatcher resolves
        product = expected.linear(x, a["weight"])
        expected.close(out, product if before is None else product + before.double(), torch.bfloat16)

    return Case(call, args, check)


# Kind of GGUF blocks -> inputs and bytes of a block, and where its float16 scale begins.
KINDS = {"Q4_0": (32, 18, 0), "Q5_0": (32, 22, 0), "Q8_0": (32, 34, 0), "Q6_K": (256, 210, 208)}


def blocks_of(kind: str, outputs: int, blocks: int) -> Tensor:
    """Any bits, with scales of 1/256: uint8 [outputs, bytes]."""
    _, size, at = KINDS[kind]
    made = torch.randint(0, 256, (outputs, blocks, size), dtype=torch.uint8)
    made[..., at : at + 2] = torch.tensor([1 / 256], dtype=torch.float16).view(torch.uint8)
    return made.flatten(1)


def quantised_linear(rng: random.Random) -> Case:
    rows, kind = rng.randint(0, 5), rng.choice(list(KINDS))
    shape = rng.randint(1, 40), rng.randint(1, 3)
    if rng.random() < 0.3:
        gate, up = blocks_of(kind, *shape), blocks_of(kind, *shape)
        weight = tk.QuantisedWeight.from_gguf_gated(kind, gate, up)
    else:
        weight = tk.QuantisedWeight.from_gguf(kind, blocks_of(kind, *shape), torch.randn(shape[0]))
    args: dict[str, Any] = {"x": torch.randn(rows, weight.inputs).to(rng.choice(FLOATS)), "weight": weight}
    args["out"] = torch.full((rows, weight.columns), torch.nan) if rng.random() < 0.5 else None
    return Case(tk.packed_linear, args)  # what comes of it: tests/kernels/test_quantised_linear.py


def pack_quantised(rng: random.Random) -> Case:
    kind, shape = rng.choice(list(KINDS)), (rng.randint(1, 40), rng.randint(1, 3))
    args: dict[str, Any] = {"kind": kind, "blocks": blocks_of(kind, *shape)}
    if rng.random() < 0.5:
        args = {"kind": kind, "gate": args["blocks"], "up": blocks_of(kind, *shape)}
        return Case(tk.QuantisedWeight.from_gguf_gated, args)
    args["bias"] = torch.randn(shape[0])

    def check(a: dict[str, Any], made: tk.QuantisedWeight) -> None:
        inputs, size, _ = KINDS[a["kind"]]
        assert (made.outputs, made.inputs) == (len(a["blocks"]), a["blocks"].shape[1] // size * inputs)

    return Case(tk.QuantisedWeight.from_gguf, args, check)


def pack_groups(rng: random.Random) -> Case:
    bits, outputs, groups = rng.choice([4, 8]), rng.randint(1, 40), rng.randint(1, 3)
    numbers = torch.randint(0, 1 << bits, (outputs, 64 * groups), dtype=torch.uint8)
    zeros = torch.randint(0, 1 << bits, (outputs, groups), dtype=torch.uint8)
    args: dict[str, Any] = {"numbers": numbers, "scales": torch.rand(outputs, groups).half(), "zeros": zeros}
    args |= {"bits": bits, "bias": torch.randn(outputs), "group_of": torch.randperm(64 * groups) // 64}

    def check(a: dict[str, Any], made: tk.QuantisedWeight) -> None:
        group_of, zeros, scales = a["group_of"], a["zeros"], a["scales"].double()
        if group_of is None:
            group_of = torch.arange(made.inputs) // (made.inputs // scales.shape[1])
        zeros = zeros[:, group_of] if isinstance(zeros, Tensor) else zeros
        wanted = (a["numbers"].double() - zeros) * scales[:, group_of]
        expected.close(made.dequantised(), wanted, torch.float32)

    return Case(tk.QuantisedWeight.from_groups, args, check)


def round_weight(rng: random.Random) -> Case:
    outputs, inputs = rng.randint(1, 40), 32 * rng.randint(1, 3)
    weight = torch.randn(outputs, inputs).to(rng.choice(FLOATS))
    args: dict[str, Any] = {"weight": weight, "bits": rng.choice([4, 8]), "bias": torch.randn(outputs)}

    def check(a: dict[str, Any], made: tk.QuantisedWeight) -> None:
        assert (made.outputs, made.inputs) == tuple(a["weight"].shape)

    return Case(tk.QuantisedWeight.quantise, args, check)


def rotate_qkv(rng: random.Random) -> Case:
    rows, q, kv, d = rng.randint(0, 4), rng.randint(1, 3), rng.randint(1, 2), 2 * rng.randint(1, 20)
    args: dict[str, Any] = {"qkv": torch.randn(rows, (q + 2 * kv) * d)}
    args |= {"cos": torch.randn(rows, d), "sin": torch.randn(rows, d), "num_q_heads": q, "num_kv_heads": kv}
    args |= {"dtype": rng.choice(FLOATS), "q_norm": None, "k_norm": None, "eps": 1e-6}
    for name in ("q_norm", "k_norm"):
        if rng.random() < 0.5:
            args[name] = torch.randn(d)

    def check(a: dict[str, Any], result: Any) -> None:
        known = {name: a[name] for name in ("q_norm", "k_norm")} | {"eps": float(a["eps"])}
        wanted = reference.rotate_qkv(
            a["qkv"], a["cos"], a["sin"], int(a["num_q_heads"]), int(a["num_kv_heads"]), **known
        )
        for found, want in zip(result, wanted, strict=True):
            expected.close(found, want, a["dtype"])

    return Case(tk.rotate_qkv, args, check)


def sample_tokens(rng: random.Random) -> Case:
    rows, vocab = rng.randint(0, 4), rng.randint(2, 400)
    params = torch.tensor(
        [[rng.choice([0.0, 0.7, 1.0]), 0, 1.0, 0.0, 1.1, rng.random()] for _ in range(rows)]
    )
    args: dict[str, Any] = {"logits": torch.randn(rows, vocab), "params": params.double().view(rows, 6)}
    pairs = sorted({(rng.randrange(rows), rng.randrange(vocab - 1)) for _ in range(4)}) if rows else []
    args |= {"seen": ints(*pairs).view(-1, 2), "suppressed": rng.choice([None, ints(*pairs).view(-1, 2)])}
    args |= {"given": rng.choice([None, torch.zeros(rows, dtype=torch.int64)])}
    args |= {"changed": ints(*pairs).view(-1, 2), "values": torch.randn(len(pairs))}
    args |= {"forbidden": rng.choice([None, torch.zeros(rows, vocab, dtype=torch.bool)])}

    def check(a: dict[str, Any], result: Any) -> None:
        tokens, numbers = result
        model = a["logits"].double().log_softmax(-1)
        if len(model) and model.isfinite().all():
            assert ((tokens >= 0) & (tokens < model.shape[1])).all()
            expected.close(numbers[0], model.gather(1, tokens[:, None])[:, 0], torch.float32)
            expected.close(numbers[1], -(model.exp() * model).sum(-1), torch.float32)

    return Case(tk.sample_tokens, args, check)


def pack(rng: random.Random) -> Case:
    outputs, inputs = rng.randint(1, 40), 2 * rng.randint(1, 10)
    weight = torch.randn(outputs, inputs).to(rng.choice(FLOATS))
    if rng.random() < 0.5:
        return Case(tk.PackedWeight.pack_gated, {"gate": weight, "up": weight.clone()})

    def check(a: dict[str, Any], made: tk.PackedWeight) -> None:
        wanted = a["weight"].double()
        expected.close(expected.matrix_of(made)[: len(wanted)], wanted, torch.float32)

    return Case(tk.PackedWeight.pack, {"weight": weight, "bias": torch.randn(outputs)}, check)
