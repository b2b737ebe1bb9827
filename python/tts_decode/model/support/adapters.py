"""Models wrapped by the package peft."""

from __future__ import annotations

from typing import Any

from ...errors import UnsupportedModelError


def without_wrapper(model: Any) -> Any:
    """Returns the transformers model inside a `PeftModel`, with its adapters; any other model unchanged.

    Raises:
        UnsupportedModelError: the adapter is not part of the modules, but a prompt that peft prepends.
    """
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not callable(getattr(model, "get_base_model", None)):
        return model
    for name, config in configs.items():
        if getattr(config, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"model: got the adapter {name!r}, which learns a prompt ({type(config).__name__}) that peft "
                "puts in front of every text, expected weights in the model's modules; train a LoRA adapter"
            )
    return model.get_base_model()
