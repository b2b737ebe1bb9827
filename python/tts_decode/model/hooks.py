"""Hooks of modules that may change their results."""

from __future__ import annotations

from torch import nn

# Since release 5 the first `output_hidden_states=True` of a model leaves permanent hooks on its layers, which
# return nothing and record only in a call that asks for it.
_RECORDERS = "transformers.utils.output_capturing"


def changing_hooks(module: nn.Module) -> tuple[int | None, ...]:
    """Returns ids of the module's forward hooks, None, ids of its forward pre-hooks; empty without hooks.

    Those by which transformers records hidden states and attentions do not count.
    """
    after, before = module._forward_hooks, module._forward_pre_hooks
    if not (after or before):
        return ()
    ids = [number for number, hook in after.items() if getattr(hook, "__module__", None) != _RECORDERS]
    return (*ids, None, *before) if ids or before else ()
