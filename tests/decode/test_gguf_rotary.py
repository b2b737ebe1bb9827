"""Rotary scaling in GGUF files: the numbers are those of llama.cpp's definition, computed in float64."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_gguf import HEAD_DIM, HEADS, IDS, KV_HEADS, LAYERS, LENGTH, PAIRS, write_tiny_gguf
from tts_decode import TreeDecoder
from tts_decode.errors import ModelLoadError
from tts_decode.model.loading import load_config, load_model

pytestmark = pytest.mark.usefixtures("one_thread", "cache")


def reference(tensors: Mapping[str, np.ndarray], cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Log-probabilities float64 [LENGTH, vocabulary] of the file's own tensors.

    cos, sin: [LENGTH, PAIRS]. Pair i of a head is its dimensions 2i and 2i + 1, as llama.cpp lays Llamas out.
    """
    weights = {name: values.astype(np.float64) for name, values in tensors.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weights[name]

    def rotated(x: np.ndarray, heads: int) -> np.ndarray:
        even, odd = np.moveaxis(x.reshape(LENGTH, heads, PAIRS, 2), -1, 0)
        c, s = cos[:, None], sin[:, None]
        return np.stack([even * c - odd * s, even * s + odd * c], -1).reshape(LENGTH, heads, HEAD_DIM)

    def softmax(x: np.ndarray) -> np.ndarray:
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)

    x = weights["token_embd.weight"][IDS]
    unseen = np.triu(np.full((LENGTH, LENGTH), -np.inf), 1)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        h = norm(x, f"{block}.attn_norm.weight")
        q = rotated(h @ weights[f"{block}.attn_q.weight"].T, HEADS)
        k = rotated(h @ weights[f"{block}.attn_k.weight"].T, KV_HEADS).repeat(HEADS // KV_HEADS, 1)
        v = (h @ weights[f"{block}.attn_v.weight"].T).reshape(LENGTH, KV_HEADS, HEAD_DIM)
        shares = softmax(np.einsum("qhd,khd->hqk", q, k) / math.sqrt(HEAD_DIM) + unseen)
        out = np.einsum("hqk,khd->qhd", shares, v.repeat(HEADS // KV_HEADS, 1)).reshape(LENGTH, -1)
        x = x + out @ weights[f"{block}.attn_output.weight"].T
        h = norm(x, f"{block}.ffn_norm.weight")
        gate = h @ weights[f"{block}.ffn_gate.weight"].T
        inner = gate / (1 + np.exp(-gate)) * (h @ weights[f"{block}.ffn_up.weight"].T)
        x = x + inner @ weights[f"{block}.ffn_down.weight"].T
    logits = norm(x, "output_norm.weight") @ weights["token_embd.weight"].T
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def rotary(
    base: float = 10000.0,
    scale: float = 1.0,
    factors: np.ndarray | None = None,
    yarn: bool = False,
    original: int = 512,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attn_factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, [LENGTH, PAIRS]: a transcription of rope_yarn and of what llama.cpp hands to it."""

    def corr_dim(turns: float) -> float:
        return HEAD_DIM * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(corr_dim(beta_fast)))
    high = min(HEAD_DIM - 1.0, math.ceil(corr_dim(beta_slow)))
    cos, sin = np.empty((LENGTH, PAIRS)), np.empty((LENGTH, PAIRS))
    for position in range(LENGTH):
        for i0 in range(0, HEAD_DIM, 2):
            theta_extrap = position * base ** (-i0 / HEAD_DIM)
            theta_extrap /= 1.0 if factors is None else float(factors[i0 // 2])
            theta = theta_interp = scale * theta_extrap
            mscale = attn_factor
            if yarn:
                y = (i0 // 2 - low) / max(0.001, high - low)
                ramp_mix = 1 - min(1.0, max(0.0, y))
                theta = theta_interp * (1 - ramp_mix) + theta_extrap * ramp_mix
                mscale *= 1 + 0.1 * math.log(1 / scale)
            cos[position, i0 // 2], sin[position, i0 // 2] = (
                math.cos(theta) * mscale,
                math.sin(theta) * mscale,
            )
    return cos, sin


def scaling(kind: str, seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Random keys and tensors of a kind of scaling, and the arguments of `rotary` that they stand for."""
    random = np.random.default_rng(seed)
    factor = float(np.float32(random.uniform(1.5, 9)))
    attn = float(np.float32(random.uniform(0.7, 1.3)))
    factors = random.uniform(0.5, 12, PAIRS).astype(np.float32)
    freqs = {"rope_freqs.weight": factors}
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": factor}
    cases: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]] = {
        "rope_freqs": ({}, freqs, {"factors": factors}),
        "rope_freqs, other base": ({"rope.freq_base": 500.0}, freqs, {"factors": factors, "base": 500.0}),
        "linear": (linear, {}, {"scale": 1 / factor}),
        "linear, no type": ({"rope.scaling.factor": factor}, {}, {"scale": 1 / factor}),
        "linear, old key": ({"rope.scale_linear": factor}, {}, {"scale": 1 / factor}),
        "linear and rope_freqs": (linear, freqs, {"scale": 1 / factor, "factors": factors}),
        "none": ({**linear, "rope.scaling.type": "none"}, {}, {}),
        "magnitude": ({"rope.scaling.attn_factor": attn}, {}, {"attn_factor": attn}),
        "yarn": (yarn, {}, {"scale": 1 / factor, "yarn": True}),
        "yarn, all keys": (
            {
                **yarn,
                "rope.scaling.original_context_length": 128,
                "rope.scaling.yarn_beta_fast": 8.0,
                "rope.scaling.yarn_beta_slow": 2.0,
                "rope.scaling.yarn_ext_factor": 1.0,
                "rope.scaling.yarn_attn_factor": 1.0,
                "rope.scaling.attn_factor": attn,
                "rope.scaling.finetuned": True,
                "rope.freq_base": 700.0,
            },
            freqs,
            {
                "scale": 1 / factor,
                "yarn": True,
                "original": 128,
                "beta_fast": 8.0,
                "beta_slow": 2.0,
                "attn_factor": attn,
                "base": 700.0,
                "factors": factors,
            },
        ),
        "longrope, equal lists": (
            {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64},
            {"rope_factors_long.weight": factors, "rope_factors_short.weight": factors},
            {"factors": factors},
        ),
    }
    keys, tensors, arguments = cases[kind]
    return {f"llama.{key}": value for key, value in keys.items()}, tensors, arguments


KINDS = [
    "rope_freqs",
    "rope_freqs, other base",
    "linear",
    "linear, no type",
    "linear, old key",
    "linear and rope_freqs",
    "none",
    "magnitude",
    "yarn",
    "yarn, all keys",
    "longrope, equal lists",
]


@pytest.mark.parametrize("kind", KINDS)
def test_rotary_scaling(file: Path, kind: str) -> None:
    keys, tensors, arguments = scaling(kind, seed=KINDS.index(kind))
    weights = write_tiny_gguf(file, keys=keys, tensors=tensors, scale=0.4)
    expected = reference(weights, *rotary(**arguments))
    if kind != "none":  # the test would see the fault
        assert np.abs(expected - reference(weights, *rotary())).max() > 0.2

    config = load_config(file)
    model, tokenizer = load_model(file, "float32")
    assert model.config.rope_parameters == config.rope_parameters == load_config(file).rope_parameters
    with torch.no_grad():
        logprobs = model(input_ids=torch.from_numpy(IDS)[None]).logits[0].double().log_softmax(-1)
    np.testing.assert_allclose(logprobs.numpy(), expected, atol=2e-4)

    async def tokens() -> torch.Tensor:
        decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 22)
        root = await decoder.root(IDS[:40].tolist())
        (branch,) = root.fork(1)
        found = await branch.extend(IDS[40:].tolist())
        last = await branch.next_logprobs()
        root.release()
        branch.release()
        return torch.cat([found, last])

    told = np.concatenate([expected[np.arange(39, LENGTH - 1), IDS[40:]], expected[-1]])
    np.testing.assert_allclose(asyncio.run(tokens()).numpy(), told, atol=5e-4)


def test_long_and_short_factors(file: Path) -> None:
    """The config has both lists; a text up to the original context takes the short one."""
    short, long = (np.random.default_rng(seed).uniform(0.5, 9, PAIRS).astype(np.float32) for seed in (0, 1))
    weights = write_tiny_gguf(
        file,
        keys={
            "llama.rope.scaling.type": "longrope",
            "llama.rope.scaling.original_context_length": LENGTH,
            "llama.rope.scaling.attn_factor": 1.25,
        },
        tensors={"rope_factors_long.weight": long, "rope_factors_short.weight": short},
        scale=0.4,
    )
    model, _ = load_model(file, "float32")
    np.testing.assert_allclose(model.config.rope_parameters["long_factor"], long, rtol=1e-7)
    with torch.no_grad():
        logprobs = model(input_ids=torch.from_numpy(IDS)[None]).logits[0].double().log_softmax(-1)
    expected = reference(weights, *rotary(factors=short, attn_factor=1.25))
    np.testing.assert_allclose(logprobs.numpy(), expected, atol=2e-4)


@pytest.mark.parametrize(
    "factors",
    [
        np.ones(PAIRS - 1),
        np.ones(PAIRS * 2),
        np.zeros(PAIRS),
        -np.ones(PAIRS),
        np.full(PAIRS, np.nan),
        np.full(PAIRS, np.inf),
    ],
)
def test_damaged_rotary_factors(file: Path, factors: np.ndarray) -> None:
    write_tiny_gguf(file, tensors={"rope_freqs.weight": factors.astype(np.float32)})
    for load in (load_config, load_model):
        with pytest.raises(ModelLoadError, match=r"rope_freqs\.weight must hold 16 finite numbers above 0"):
            load(file)
