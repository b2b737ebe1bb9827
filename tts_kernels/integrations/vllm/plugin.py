"""The entry point `vllm.general_plugins`, which vLLM calls in each of its processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ...checks.pages import PAGE_SIZE
from .support import (
    VARIABLE,
    VLLMIntegrationError,
    check_cache_dtype,
    check_config,
    check_dtype,
    check_version,
    switched_on,
)


def register() -> None:
    """Registers the backend with vLLM.

    On a CPU it replaces vLLM's own backend, because vLLM offers no choice there. Elsewhere it is the backend
    CUSTOM, for those who select it.

    Versions of vLLM that it was not tested with are refused: on a CPU by VLLMIntegrationError, so that vLLM
    does not start; elsewhere the backend CUSTOM is missing, and vLLM's log has an error.
    """
    from vllm import __version__
    from vllm.logger import init_logger
    from vllm.platforms import current_platform

    # Below vLLM's own logger, whose handler and level apply.
    logger = init_logger("vllm.tts_kernels")
    if not switched_on():
        logger.warning_once("tts_kernels is installed, but %s=0 turns it off", VARIABLE)
        return
    try:
        check_version(__version__)
    except VLLMIntegrationError as refusal:
        if current_platform.is_cpu():
            raise
        logger.error("%s", refusal)
        return
    _register()


@lru_cache  # vLLM may call a plugin several times in a process
def _register() -> None:
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if current_platform.is_cpu():
        register_backend(AttentionBackendEnum.CPU_ATTN, f"{__package__}.packed.PackedBackend")
        _look_at_configurations(type(current_platform), _adjust_and_check)
    else:
        register_backend(AttentionBackendEnum.CUSTOM, f"{__package__}.plain.PlainBackend")
        _look_at_configurations(type(current_platform), _check_if_chosen)


def _look_at_configurations(platform: Any, look: Callable[[Any], None]) -> None:
    """Passes each VllmConfig to `look` after vLLM's own adjustments, before a process is started for it."""
    before = platform.check_and_update_config

    def check_and_update_config(cls: Any, config: Any) -> None:
        before(config)
        look(config)

    platform.check_and_update_config = classmethod(check_and_update_config)


def _adjust_and_check(config: Any) -> None:
    """Sets the block size to a page's unless the user chose one; then checks the configuration.

    vLLM would use 128 tokens. Up to 127 tokens at the end of a prompt would then be computed and kept once
    per sequence.
    """
    if not config.cache_config.user_specified_block_size:
        config.cache_config.block_size = PAGE_SIZE
    if config.model_config is not None:
        check_dtype(config.model_config.dtype, (torch.float32, torch.bfloat16))
        check_cache_dtype(config.cache_config.cache_dtype, config.model_config.dtype)
    check_config(config)


def _check_if_chosen(config: Any) -> None:
    """Checks the configuration if our backend is chosen. vLLM itself checks its dtypes and block sizes."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    attention = config.attention_config
    if AttentionBackendEnum.CUSTOM in (attention.backend, *attention.backend_per_kind.values()):
        check_config(config)
