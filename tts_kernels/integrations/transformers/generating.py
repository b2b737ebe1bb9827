"""transformers' `generate` with a `TreeCache`: its arguments are looked at before anything is computed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from ...checks import shown
from .cache import TreeCache
from .errors import UnsupportedError

_CACHE_NAMES = ("cache", "past_key_values")
_ALONE = 'or leave TreeCache out and call model.set_attn_implementation("sdpa")'


@functools.cache
def watch_generate() -> None:
    """Has `generate` of all models look at a TreeCache that it gets; without one it is as it was.

    The cache itself sees keys and values only. Nothing else in transformers is handed whole prompts.
    """
    GenerationMixin.generate = _watched(GenerationMixin.generate)  # type: ignore[method-assign]


def _watched(generate: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(generate)

    @functools.wraps(generate)
    def watched(model: Any, *args: Any, **options: Any) -> Any:
        cache = next((options[name] for name in _CACHE_NAMES if options.get(name) is not None), None)
        if not isinstance(cache, TreeCache):
            return generate(model, *args, **options)
        given = signature.bind(model, *args, **options).arguments | options
        configs = [config for config in (given.get("generation_config"), model.generation_config) if config]

        def setting(name: str) -> Any:
            """Of a call, or of the configuration that it goes by."""
            values = (given.get(name), *(getattr(config, name, None) for config in configs))
            return next((value for value in values if value is not None), None)

        _refuse_modes(model, cache, setting)
        ids, mask = _prompts(given)
        beams = setting("num_beams") or 1
        if ids is not None:
            cache.check_prompts(ids, mask, copies=max(beams, setting("num_return_sequences") or 1))
        before, tokens, rest_unknown = cache.get_seq_length(), ids, True
        try:
            out = generate(model, *args, **options)
            if beams == 1 and ids is not None:
                tokens, rest_unknown = getattr(out, "sequences", out), False
            return out
        finally:
            if cache.get_seq_length() != before:
                told = _of_rows(tokens, cache.batch_size)
                cache.remember(told, mask, rest_unknown=rest_unknown)

    return watched


def _prompts(given: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Ids [B, S] and their mask, None where it has no padding; no ids where they are not all there."""
    ids = given.get("input_ids") if given.get("inputs") is None else given["inputs"]
    mask = given.get("attention_mask")
    if (
        not isinstance(ids, Tensor)
        or ids.dim() != 2
        or not len(ids)
        or given.get("inputs_embeds") is not None
    ):
        return None, None
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
        return None, None  # new tokens alone, with the mask of all; or refused later
    return ids, mask


def _of_rows(tokens: Any, rows: int) -> Tensor | None:
    """Tokens [n, S] for so many rows, None where they are something else, as code of others may return."""
    if isinstance(tokens, Tensor) and tokens.dim() == 2 and tokens.numel() and not tokens.is_floating_point():
        return tokens if rows and rows % len(tokens) == 0 else None
    return None


def _refuse_modes(model: Any, cache: TreeCache, setting: Callable[[str], Any]) -> None:
    """Raises UnsupportedError for a mode that runs the model without the cache, or beside its rows."""
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
