"""Checks the arguments of transformers' `generate` with a `TreeCache` before anything is computed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from ...checks import shown
from .cache import TreeCache
from .errors import MaskError, UnsupportedError
from .given_caches import given_tree_cache

_ALONE = 'or leave TreeCache out and call model.set_attn_implementation("sdpa")'


@functools.cache
def watch_generate() -> None:
    """Makes `generate` of all models check a TreeCache passed to it; without one it is unchanged.

    The cache itself sees keys and values only. Nothing else in transformers receives whole prompts.
    """
    GenerationMixin.generate = _watched(GenerationMixin.generate)  # type: ignore[method-assign]


def _watched(generate: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(generate)

    @functools.wraps(generate)
    def watched(model: Any, *args: Any, **options: Any) -> Any:
        cache = given_tree_cache(args, options)
        if cache is None:
            return generate(model, *args, **options)
        given = signature.bind(model, *args, **options).arguments | options
        configs = [config for config in (given.get("generation_config"), model.generation_config) if config]

        def setting(name: str) -> Any:
            """Of a call, or of the configuration that it goes by."""
            values = (given.get(name), *(getattr(config, name, None) for config in configs))
            return next((value for value in values if value is not None), None)

        _refuse_modes(model, cache, setting)
        copies = max(setting("num_beams") or 1, setting("num_return_sequences") or 1)
        _check_prompts(model, cache, given, copies)
        try:
            return generate(model, *args, **options)
        except MaskError as error:
            if not _infers_mask(given, setting):
                raise
            raise UnsupportedError(
                "attention_mask: got none, so generate inferred one, with zeros where the prompts have "
                f"pad_token_id {shown(setting('pad_token_id'))}, which does not go with the TreeCache; pass "
                "attention_mask=torch.ones_like(input_ids) if these are tokens of the prompts, or else the "
                "tokenizer's mask"
            ) from error

    return watched


def _infers_mask(given: dict[str, Any], setting: Callable[[str], Any]) -> bool:
    """Whether `generate` treats pad ids in the prompts as padding; not if they also end a text."""
    ids = given.get("input_ids") if given.get("inputs") is None else given["inputs"]
    pad, ends = setting("pad_token_id"), setting("eos_token_id")
    if given.get("attention_mask") is not None or pad is None or not isinstance(ids, Tensor):
        return False
    return pad not in (ends if isinstance(ends, list) else [ends]) and bool((ids == pad).any())


def _check_prompts(model: Any, cache: TreeCache, given: dict[str, Any], copies: int) -> None:
    """Raises UnsupportedError if the first forward's input does not continue the cache.

    With a longer mask, ids are new ones only, and nothing represents the content of the cache.
    """
    ids: Any = given.get("input_ids") if given.get("inputs") is None else given["inputs"]
    embeds, mask, positions = (
        given.get(name) for name in ("inputs_embeds", "attention_mask", "position_ids")
    )
    prompts = ids if embeds is None else embeds
    if not isinstance(prompts, Tensor) or prompts.dim() < 2 or not len(prompts):
        return
    total = mask.shape[-1] if isinstance(mask, Tensor) else prompts.shape[1]
    if embeds is not None:
        cache.check_embeddings(model, embeds, copies=copies)
    elif total == prompts.shape[1]:
        cache.check_prompts(ids, mask, copies=copies)
    if isinstance(positions, Tensor) and positions.shape[-1] == total:
        cache.check_positions(positions)


def _refuse_modes(model: Any, cache: TreeCache, setting: Callable[[str], Any]) -> None:
    """Raises UnsupportedError for a mode that runs the model without the cache, or outside its rows."""
    if setting("use_cache") is False:
        raise UnsupportedError(
            "use_cache: got False with a TreeCache, expected True, as each step computes the whole text "
            f"otherwise; pass use_cache=True, {_ALONE}"
        )
    scale = setting("guidance_scale")
    if scale is not None and scale != 1:
        raise UnsupportedError(
            f"guidance_scale: got {shown(scale)}, expected none, as guidance runs the model on a second "
            f"prompt without the TreeCache; leave guidance_scale out, {_ALONE}"
        )
    if (layers := setting("assistant_early_exit")) is not None:
        raise UnsupportedError(
            f"assistant_early_exit: got {shown(layers)}, expected none, as it runs the model's first layers "
            f"without the TreeCache; leave assistant_early_exit out, {_ALONE}"
        )
    assistant = setting("assistant_model")
    if assistant is model:
        raise UnsupportedError(
            "assistant_model: got the model itself, expected another, as it makes a cache of its own; load "
            'it once more with attn_implementation="sdpa" for it'
        )
    name = "prompt_lookup_num_tokens" if assistant is None else "assistant_model"
    if cache.batch_size and setting(name) is not None:
        raise UnsupportedError(
            f"{name}: got one with a TreeCache that holds {cache.get_seq_length()} tokens of each row, "
            "expected an empty one, as the whole prompt is computed in the first step; call cache.reset(), "
            "and leave cache.prefill out"
        )
