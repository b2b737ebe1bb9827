"""Models wrapped by the package peft."""

from __future__ import annotations

from typing import Any

from ...errors import UnsupportedModelError


def without_wrapper(model: Any) -> Any:
    """The transformers model inside a `PeftModel`, whose adapters lie in its modules; any other model itself.

    Raises:
        UnsupportedModelError: the adapter is no part of the modules, but a prompt that peft puts in front.
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
