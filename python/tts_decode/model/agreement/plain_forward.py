"""The model's own forward of the self-check's texts, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..hf import HFEngine
from ..support.features import refusal
from .check_program import CheckProgram
from .layer_calls import LayerCall, hidden_of, returned_like
from .substitution import RecordTopk, Routing, Weights, counted_rows, joined, replaced_forwards


class PlainForward:
    """The model's results for the program's N tokens.

    The texts at low positions run through the model. The one at high positions runs only around the layers,
    which return what they returned for the first tokens at low positions: realistic hidden states of a layer.
    `finish` computes each layer's output for it, while the layer's weights are substituted anyway.

    Attributes:
        inputs: of each layer, float [..., N, hidden].
        returned: each layer's result, or its stand-in, like `inputs`.
        outputs: of each layer for its inputs; those at high positions once the layer is finished.
        routing: what each layer's top-k chose, likewise.
        like: functions that give hidden states the form of each layer's result.
        last: the model's last hidden states after what was returned, float [N, hidden].
        logits: float [3, rows, vocab] of the low texts, or None.
    """

    def __init__(
        self, engine: HFEngine, layers: list[nn.Module], weights: Weights, program: CheckProgram
    ) -> None:
        self.inputs: list[Tensor] = []
        self.returned: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.routing: list[Routing] = []
        self.like: list[Callable[[Tensor], Any]] = []
        self.logits: Tensor | None = None
        self._engine = engine
        self._layers = layers
        self._weights = weights
        self._implementation = _plain_attention(engine)
        self._high_calls: list[LayerCall] = []
        self._first_high = int(program.high_positions[0, 0])
        self._counted: set[int] = set()  # layers that may count their rows
        last = self._run_low(program)
        if len(self.inputs) != len(layers):
            raise refusal(engine.model, "layers that do not run once each")
        self.last = torch.cat([last, self._run_high(program)])

    def finish(self, layer: int) -> None:
        """Computes a layer's output at high positions. Its weights are substituted."""
        call, by_position = self._high_calls[layer], self._engine.calls[layer].by_position
        if by_position:
            call = call.behind(self._first_high)
        routing: Routing = []
        with (
            self._engine.attention(self._implementation),
            counted_rows([self._engine.attention_modules[layer]], call.hidden.shape[-2]) as counted,
            RecordTopk(routing),
        ):
            output = call.run(self._layers[layer].forward, call.hidden)
        if counted and layer in self._counted and not by_position:
            raise refusal(self._engine.model, "attention that counts its rows itself (a scale by position)")
        self.outputs[layer] = torch.cat([self.outputs[layer], output], -2)
        self.routing[layer] = joined(self.routing[layer], routing)

    def _run_low(self, program: CheckProgram) -> Tensor:
        """Returns last hidden states [N, hidden]."""
        engine = self._engine

        def recorded(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                routing: Routing = []
                self.inputs.append(LayerCall(args, kwargs).hidden)
                with self._weights.layer(index), RecordTopk(routing):
                    result = forward(*args, **kwargs)
                self.routing.append(routing)
                self.outputs.append(hidden_of(result))
                self.like.append(returned_like(result))
                return result

            return run

        options: dict[str, Any] = {"input_ids": program.low.to(engine.device)}
        if engine.has_lm_head:
            options["logits_to_keep"] = program.logit_rows.to(engine.device)
        with counted_rows(engine.attention_modules, program.low.shape[1]) as self._counted:
            output, last = self._run(engine.model if engine.has_lm_head else engine.base, recorded, options)
        logits = getattr(output, "logits", None)
        if logits is not None and logits.shape[1] != len(
            program.logit_rows
        ):  # a class without logits_to_keep
            logits = logits[:, program.logit_rows]
        self.logits = logits
        return last

    def _run_high(self, program: CheckProgram) -> Tensor:
        """Returns last hidden states [N, hidden] after stand-ins for the layers' outputs."""
        engine, count = self._engine, program.high.shape[1]

        def recorded(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                call, instead = LayerCall(args, kwargs), self.outputs[index][..., :count, :]
                self._high_calls.append(call)
                self.inputs[index] = torch.cat([self.inputs[index], call.hidden], -2)
                self.returned.append(torch.cat([self.outputs[index], instead], -2))
                return self.like[index](instead)

            return run

        positions = program.high_positions.to(engine.device)
        options = {"input_ids": program.high.to(engine.device), "position_ids": positions}
        return self._run(engine.base, recorded, options)[1]

    def _run(
        self,
        module: Any,
        recorded: Callable[[int, Callable[..., Any]], Callable[..., Any]],
        options: dict[str, Any],
    ) -> tuple[Any, Tensor]:
        """Returns the module's result and the last hidden states, with the layers replaced."""
        last: list[Tensor] = []
        hook = self._engine.base.register_forward_hook(lambda _m, _a, out: last.append(out[0].flatten(0, 1)))
        try:
            with self._engine.attention(self._implementation), replaced_forwards(self._layers, recorded):
                return module(**options, use_cache=False), last[-1]
        finally:
            hook.remove()


def _plain_attention(engine: HFEngine) -> str:
    """Returns the model's own implementation, if it computes in float32 and reads no pages."""
    own: str = engine.config._attn_implementation
    if own in ("eager", "sdpa"):
        return own
    return "sdpa" if getattr(engine.model, "_supports_sdpa", False) else "eager"
