"""The two paths of a decoder, the model's modules and the packed weights, compared with the plain forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tts_kernels import KVPool, TreePlan, plan

from ..device_steps import make_planner
from ..families.catalogue import family_of
from ..families.reading import pack_layer
from ..hf import HFEngine, Inputs, Output
from ..packed_model import PackedLayers, PackedModel
from ..quantised_modules import QuantisedLinear
from ..support.named_features import text_body
from ..transfer import to_device
from ..tree_attention import StepContext
from .check_program import NUM_PAGES, PAGE_SIZE, CheckProgram, CheckStep
from .differences import QUANTISED_HEAD, QUANTISED_LAYER, Differences, rounding
from .layer_calls import LayerCall
from .plain_forward import PlainForward
from .substitution import ReplayTopk, Weights, replaced_forwards


@dataclass(frozen=True)
class Comparison:
    """What is compared, and with what.

    dtype: of the computation. on_host: whether the CPU's kernels and page layout serve, rather than a GPU's.
    """

    engine: HFEngine
    layers: list[nn.Module]
    weights: Weights
    program: CheckProgram
    plain: PlainForward
    differences: Differences
    dtype: torch.dtype
    on_host: bool

    def layer(self, layer: int, got: list[Tensor], path: str, tolerance: float | None = None) -> None:
        """Compares a layer. got: float [..., T, hidden], its outputs in each step."""
        states = torch.cat(got, -2)
        source = self.program.source.to(states.device)
        before = self.plain.inputs[layer][..., source, :]
        expected = self.plain.outputs[layer][..., source, :]
        self.differences.compare_layer(states, before, expected, layer, self.program.places, path, tolerance)

    def states(self, got: list[Tensor], expected: Tensor, what: str, path: str) -> None:
        """Compares got, float [..., T, hidden] of each step, with expected, [..., N, hidden] of the texts."""
        states = torch.cat(got, -2)
        expected = expected[..., self.program.source.to(states.device), :]
        self.differences.compare(states, expected, expected, what, self.program.places, path)

    def logits(self, got: Tensor, path: str) -> None:
        """Compares logits. got: float32 [rows, vocab] of all steps."""
        assert self.plain.logits is not None
        text, place = (index.to(got.device) for index in self.program.logit_index)
        expected = self.plain.logits[text, place].float()
        places = [self.program.places[row] for row in self.program.rows]
        head = self.engine.model.get_output_embeddings()
        tolerance = QUANTISED_HEAD if isinstance(head, QuantisedLinear) else rounding(self.engine.dtype)
        self.differences.compare(got, expected, expected, "the logits", places, path, tolerance)

    def pool(self, num_layers: int) -> KVPool:
        shape = self.engine.kv_shape
        return KVPool(
            num_layers=num_layers,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            num_pages=NUM_PAGES,
            dtype=self.dtype,
            device=self.engine.device,
            layout="packed" if self.on_host else "HND",
        )


class GeneralPath:
    """The model's modules with attention over pages. The constructor compares all but the layers."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._pool = comparison.pool(comparison.engine.kv_shape.num_layers)
        self._contexts = [self._context(step) for step in comparison.program.steps]
        self._calls: list[list[LayerCall]] = []  # of each step
        plain, engine = comparison.plain, comparison.engine
        outputs = [
            self._around_layers(*pair) for pair in zip(comparison.program.steps, self._contexts, strict=True)
        ]
        for layer, inputs in enumerate(plain.inputs):
            got = [calls[layer].hidden for calls in self._calls]
            comparison.states(got, inputs, f"the input of layer {layer}", "general")
        hidden = [output.hidden for output in outputs if output.hidden is not None]
        comparison.states(hidden, plain.last, "the last hidden states", "general")
        if engine.has_lm_head:
            comparison.logits(torch.cat([output.logits for output in outputs]), "general")

    def compare(self, layer: int) -> None:
        """Compares a layer, whose weights are substituted."""
        made, plain = self._comparison, self._comparison.plain
        forward = made.layers[layer].forward
        got = []
        for step, context, calls in zip(made.program.steps, self._contexts, self._calls, strict=True):
            _copy_pages(self._pool, step)
            source = step.source.to(made.engine.device)
            positions = made.program.positions.to(source.device)[source]
            chosen = [indices[source] for indices in plain.routing[layer]]
            with (
                made.engine.tree_attention(context, positions, layer),
                ReplayTopk(chosen) if chosen else nullcontext(),
            ):
                got.append(calls[layer].run(forward, plain.inputs[layer][..., source, :]))
        made.layer(layer, got, "general")

    def _around_layers(self, step: CheckStep, context: StepContext) -> Output:
        """Runs the forward of a step in which each layer returns what it returned in the plain one."""
        made, device = self._comparison, self._comparison.engine.device
        source = step.source.to(device)
        step_calls: list[LayerCall] = []

        def recorded(index: int, _forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                step_calls.append(LayerCall(args, kwargs))
                return made.plain.like[index](made.plain.returned[index][..., source, :])

            return run

        with replaced_forwards(made.layers, recorded):
            rows = step.inputs.rows if made.engine.has_lm_head else []
            inputs = Inputs(
                torch.tensor(step.inputs.tokens, device=device),
                torch.tensor(step.inputs.positions, device=device),
                torch.tensor(rows, dtype=torch.long, device=device),
                hidden=True,
            )
            output = made.engine.general_forward(inputs, context)
        self._calls.append(step_calls)
        return output

    def _context(self, step: CheckStep) -> StepContext:
        made, inputs = self._comparison, step.inputs
        slots = to_device(torch.from_numpy(inputs.slots), made.engine.device)
        if made.on_host:
            return StepContext(self._pool, slots, _host_plan(step))
        planner = make_planner(made.engine, self._pool)  # one per step, as it overwrites its plans
        return StepContext(self._pool, slots, planner.update(inputs.tables, inputs.lengths, inputs.counts))


class PackedPath:
    """Packed weights on the CPU. The constructor compares everything before and after the layers."""

    def __init__(self, comparison: Comparison, packed: PackedModel) -> None:
        self._comparison = comparison
        self._model = packed
        self._pool = comparison.pool(1)
        self._plans = [_host_plan(step) for step in comparison.program.steps]
        program, plain = comparison.program, comparison.plain
        tokens = [token for step in program.steps for token in step.inputs.tokens]
        first = packed.first_inputs(comparison.engine.embed(torch.tensor(tokens)))
        comparison.states([first], plain.inputs[0], "the input of layer 0", "packed")
        # Made from the substituted weights outside the layers, unlike `packed`.
        behind = PackedLayers(text_body(comparison.engine.model), packed.layers[:1])
        normed = behind.final_norm(plain.returned[-1][program.source])
        comparison.states([normed], plain.last, "the last hidden states", "packed")
        if comparison.engine.has_lm_head:
            comparison.logits(packed.logits(plain.last[program.source[program.rows]]), "packed")

    def compare(self, layer: int) -> None:
        """Compares a layer, whose weights are substituted."""
        self._compare(layer, None)
        if self._comparison.weights.are_quantised(layer):  # as served: only rounding may differ
            with self._comparison.weights.as_served(layer):
                self._compare(layer, QUANTISED_LAYER)

    def _compare(self, layer: int, tolerance: float | None) -> None:
        made, program = self._comparison, self._comparison.program
        base = text_body(made.engine.model)
        packed = self._model.layers[layer]
        if made.weights.changes(layer):
            packed = pack_layer(family_of(base), base.layers[layer], made.engine.calls[layer])
        alone = PackedLayers(base, [packed])
        got = []
        for step, step_plan in zip(program.steps, self._plans, strict=True):
            _copy_pages(self._pool, step)
            states, positions = made.plain.inputs[layer][step.source], program.positions[step.source]
            pages = self._pool, torch.from_numpy(step.inputs.slots), step_plan
            experts = None
            if packed.experts is not None:  # near ties are decided alike
                experts = made.plain.routing[layer][0][step.source]
            alone.hidden_states(states, positions, torch.float32, pages, experts=experts)
            got.append(states)
        made.layer(layer, got, "packed", tolerance)


def _copy_pages(pool: KVPool, step: CheckStep) -> None:
    if len(step.inputs.copies):
        pool.copy(to_device(torch.from_numpy(step.inputs.copies), pool.k_pages.device))


def _host_plan(step: CheckStep) -> TreePlan:
    inputs = step.inputs
    return plan(inputs.tables, inputs.lengths, inputs.counts, page_size=PAGE_SIZE)
