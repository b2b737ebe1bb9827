"""Whether a decoder computes what the model itself does, seen before anything is served.

The model's own plain forward of a few random texts is compared with the tree's: prefill in chunks, a fork in
the middle of a page with ragged branches, decode steps, a truncation (`check_program.py`). Three things keep
rounding from hiding a fault, and from being taken for one:

* Each layer is compared by itself: it is given the input that it had in the plain forward, so that nothing
  adds up over the layers.
* It is compared in float32, whatever the weights are in. They are cast layer by layer: a model in bfloat16
  takes no more memory than one of its layers does in float32.
* Experts are those that the plain forward chose: what `torch.topk` returned there it returns again.

A weight that is still constant, as norms, biases and gates are made, can hide that it is not applied. So it
gets noise, the same in both forwards (`substitution.py`). That was preferred to a small random copy of the
model because it looks at the model that is served, adapters and patched modules included, and needs nothing
from its class.

Positions are compared twice: as the model counts them itself from 0 on, and, given to it, at the end of those
that it has, past every threshold on the way. What goes by a token's place in the sequence acts only in texts
longer than these: attention masks are asked for at all lengths (`masks.py`), settings are looked at by name
(`features.py`), and an attention that counts its rows itself is refused here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tts_kernels import KVPool, TreePlan, plan

from ...errors import UnsupportedModel
from ..device_steps import make_planner
from ..hf import HFEngine, StepContext
from ..packed_model import LeanLayers, PackedModel, pack_layer
from ..support.features import refusal
from ..support.length_settings import refuse_length_settings
from ..transfer import to_device
from .check_program import NUM_PAGES, PAGE_SIZE, CheckProgram, CheckStep
from .substitution import CountedRows, RecordTopk, ReplayTopk, Routing, Weights, joined, replaced_forwards

_HINT = "The model has something beside attention that looks at other tokens, or attention of its own"
_HINTS = {
    "the input of layer 0": "Its positions may not begin at 0, or its embeddings look at other tokens"
}  # by the place
# Largest difference that is rounding, of what a layer adds to its input. In float32 it was 2e-6 at most over
# the tiny models of all architectures, 2e-5 in a trained model of 30 layers, and 3e-5 where weights were a
# thousand times too large; one step of bfloat16 is 4e-3. The logits of models in bfloat16 differed by 4e-3.
_TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 0.03, torch.float16: 0.004}
_SMALL = 300_000_000  # parameters of a model that is compared on one thread


@dataclass(frozen=True)
class SelfCheck:
    """What a check found.

    Attributes:
        seconds: that it took.
        difference: the largest, relative to what a layer adds to its input, or to a row's largest logit.
        place: where that was.
        tolerance: what `difference` may be there.
        paths: that were compared: "general", the model's modules, and "packed", where they are.
    """

    seconds: float
    difference: float
    place: str
    tolerance: float
    paths: tuple[str, ...]


def check_agreement(engine: HFEngine, *, on_host: bool) -> SelfCheck:
    """Compares the engine's forwards with the model's own; a model that did not change is compared once.

    on_host: whether the CPU's kernels and their layout of pages serve, or those of GPUs.

    Raises:
        UnsupportedModel: they disagree, or cannot be compared.
    """
    model = engine.model
    refuse_length_settings(model)
    if not CheckProgram.fits(engine.max_positions):
        raise UnsupportedModel(
            f"{type(model).__name__} has {engine.max_positions} positions, too few for the self-check: pass "
            "check=False to use it unchecked"
        )
    key = _fingerprint(engine, on_host)
    known = _checked.get(model)
    if known is not None and key is not None and known[0] == key:
        return known[1]
    started = time.perf_counter()
    try:
        with torch.inference_mode(), _full_float32(), _threads_for(engine):
            check = _Comparison(engine, on_host)
            check.run()
    except (UnsupportedModel, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be compared with its own forward ({type(error).__name__}: "
            f"{error}): pass check=False to use it unchecked"
        ) from error
    paths = ("general", "packed") if engine.lean is not None else ("general",)
    done = SelfCheck(time.perf_counter() - started, check.worst, check.place, check.tolerance, paths)
    if key is not None:
        _checked[model] = key, done
    return done


_checked: WeakKeyDictionary[Any, tuple[Any, SelfCheck]] = WeakKeyDictionary()


def _fingerprint(engine: HFEngine, on_host: bool) -> Any:
    """What a check depends on; None where changes of the weights cannot be seen."""
    model = engine.model
    if any(weight.is_inference() for weight in [*model.parameters(), *model.buffers()]):
        return None
    return (
        on_host,
        engine.lean is not None,
        tuple(engine.windows),
        engine.config._attn_implementation,
        engine.weights.epoch,
        [
            (
                type(module),
                id(vars(module).get("forward")),
                *module._forward_hooks,
                *module._forward_pre_hooks,
            )
            for module in model.modules()
        ],
    )


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products of float32 in all of their bits on GPUs too."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def _threads_for(engine: HFEngine) -> Iterator[None]:
    """One thread for small models: their products gain little from more, which wait for each other where the
    machine is busy (SmolLM2-135M on 2 cores at a load of 6: 1.7 s with one thread, 6 to 15 s with two)."""
    before = torch.get_num_threads()
    if engine.shape.parameters < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Plain:
    """What the plain forward had, of its N tokens, layer by layer.

    inputs, outputs: float [..., N, hidden]. routing: of each layer. returned: what kind of thing each layer
    returned, as a function of its hidden states. last: float [N, hidden], the model's last hidden states.
    logits: float [3, rows, vocab] of the low texts, or None. counting: layers that may count their rows.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    routing: list[Routing]
    returned: list[Callable[[Tensor], Any]]
    last: Tensor
    logits: Tensor | None
    counting: set[int]


class _Comparison:
    """One check. worst, place, tolerance: of the largest difference in relation to what is allowed."""

    def __init__(self, engine: HFEngine, on_host: bool) -> None:
        self._engine = engine
        self._on_host = on_host
        model = engine.model
        self._runs = model if engine.has_lm_head else engine.base
        self._layers = _layers_of(self._runs, engine.attention_modules)
        quantised = any(type(weight.data) is not Tensor for weight in model.parameters())
        self._exact = not quantised and not getattr(model, "is_quantized", False)
        self._dtype = torch.float32 if self._exact else engine.dtype
        self._weights = Weights(self._runs, self._layers, model.get_output_embeddings(), exact=self._exact)
        avoid = _special_tokens(model.config) | _special_tokens(engine.config)
        self._program = CheckProgram(engine.config.vocab_size, avoid, engine.max_positions)
        self.worst, self.place, self.tolerance = 0.0, "nowhere", _TOLERANCE[self._dtype]

    def run(self) -> None:
        with self._weights.rest():
            plain = self._plain()
            ways = [self._general(plain)]
            if self._engine.lean is not None:
                ways.append(self._packed(plain, self._engine.lean))
            for layer in range(len(self._layers)):
                with self._weights.layer(layer):
                    for compare in ways:
                        compare(layer)

    # -- the plain forward

    def _plain(self) -> _Plain:
        program = self._program
        low = self._plain_forward(program.low, None)
        high = self._plain_forward(program.high, program.high_positions)
        if low.counting & high.counting:
            raise refusal(self._engine.model, "attention that counts its rows itself (a scale by position)")
        return _Plain(
            [torch.cat(pair, -2) for pair in zip(low.inputs, high.inputs, strict=True)],
            [torch.cat(pair, -2) for pair in zip(low.outputs, high.outputs, strict=True)],
            [joined(*pair) for pair in zip(low.routing, high.routing, strict=True)],
            low.returned,
            torch.cat([low.last, high.last]),
            low.logits,
            set(),
        )

    def _plain_forward(self, ids: Tensor, positions: Tensor | None) -> _Plain:
        engine = self._engine
        plain = _Plain([], [], [], [], torch.empty(0), None, set())

        def recorded(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                routing: Routing = []
                plain.inputs.append(_hidden(args, kwargs).flatten(-3, -2))
                with self._weights.layer(index), RecordTopk(routing):
                    result = forward(*args, **kwargs)
                plain.routing.append(routing)
                plain.outputs.append(_first(result).flatten(-3, -2))
                plain.returned.append(_like(result))
                return result

            return run

        def counted(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                with CountedRows(ids.shape[1]) as rows:
                    result = forward(*args, **kwargs)
                if rows.seen:
                    plain.counting.add(index)
                return result

            return run

        options: dict[str, Any] = {"input_ids": ids.to(engine.device), "use_cache": False}
        base = engine.base
        runs = base if positions is not None else self._runs
        if positions is not None:
            options["position_ids"] = positions.to(engine.device)
        elif engine.has_lm_head:
            options["logits_to_keep"] = self._program.logit_rows.to(engine.device)
        hook = base.register_forward_hook(lambda _m, _a, out: setattr(plain, "last", out[0].flatten(0, 1)))
        try:
            with (
                engine.attention(_plain_attention(engine)),
                replaced_forwards(self._layers, recorded),
                replaced_forwards(engine.attention_modules, counted),
            ):
                output = runs(**options)
        finally:
            hook.remove()
        if len(plain.inputs) != len(self._layers):
            raise refusal(engine.model, "layers that do not run once each")
        plain.logits = getattr(output, "logits", None)
        rows = self._program.logit_rows
        if plain.logits is not None and plain.logits.shape[1] != len(rows):  # a class without logits_to_keep
            plain.logits = plain.logits[:, rows]
        return plain

    # -- the general path

    def _general(self, plain: _Plain) -> Callable[[int], None]:
        """Compares what is around the layers; returns what compares a layer."""
        engine, steps = self._engine, self._program.steps
        pool = self._pool(engine.kv_shape.num_layers)
        contexts = [self._context(pool, step) for step in steps]
        calls = [self._call_without_layers(plain, *pair) for pair in zip(steps, contexts, strict=True)]

        def compare(layer: int) -> None:
            for step, context, made in zip(steps, contexts, calls, strict=True):
                self._copy_pages(pool, step)
                args, kwargs = _with_hidden(*made[layer], _take(plain.inputs[layer], step.source))
                chosen = [indices[step.source] for indices in plain.routing[layer]]
                with engine.tree_attention(context, layer), ReplayTopk(chosen) if chosen else nullcontext():
                    result = self._layers[layer].forward(*args, **kwargs)
                self._compare_layer(plain, layer, step, "general", _first(result).flatten(-3, -2))

        return compare

    def _call_without_layers(
        self, plain: _Plain, step: CheckStep, context: StepContext
    ) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What each layer is called with, where each returns what it did in the plain forward; compares what
        goes into the layers and comes out of the model."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def recorded(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                calls.append((args, kwargs))
                return plain.returned[index](_take(plain.outputs[index], step.source))

            return run

        device, inputs = self._engine.device, step.inputs
        rows = inputs.rows if self._engine.has_lm_head else []
        with replaced_forwards(self._layers, recorded):
            output = self._engine.general_forward(
                torch.tensor(inputs.tokens, device=device),
                torch.tensor(inputs.positions, device=device),
                torch.tensor(rows, dtype=torch.long, device=device),
                context,
                hidden=True,
            )
        for layer, call in enumerate(calls):
            expected = plain.inputs[layer][..., step.source.to(device), :]
            got = _hidden(*call).flatten(-3, -2)
            self._compare(got, expected, expected, f"the input of layer {layer}", step, "general")
        assert output.hidden is not None
        expected = plain.last[step.source.to(device)]
        self._compare(output.hidden, expected, expected, "the last hidden states", step, "general")
        if rows:
            self._compare_logits(plain, output.logits, step, "general")
        return calls

    # -- the packed path

    def _packed(self, plain: _Plain, lean: PackedModel) -> Callable[[int], None]:
        """Compares the logits; returns what compares a layer, and the final norm behind the last."""
        steps = self._program.steps
        base: Any = self._engine.base
        pool = self._pool(1)
        plans = [_host_plan(step) for step in steps]
        for step in steps if self._engine.has_lm_head else ():
            rows = step.source[step.inputs.rows]
            if len(rows):
                self._compare_logits(plain, lean.logits(plain.last[rows]), step, "packed")

        def compare(layer: int) -> None:
            packed = lean.layers[layer]
            if self._weights.changes(layer):
                packed = pack_layer(base.layers[layer], self._engine.windows[layer])
            alone = LeanLayers(base, [packed])
            for step, made in zip(steps, plans, strict=True):
                self._copy_pages(pool, step)
                states = plain.inputs[layer][step.source].clone()
                normed = alone.hidden_states(
                    states,
                    self._program.positions[step.source],
                    torch.float32,
                    (pool, torch.from_numpy(step.inputs.slots), made),
                )
                self._compare_layer(plain, layer, step, "packed", states)
                if layer == len(self._layers) - 1:
                    expected = plain.last[step.source]
                    self._compare(normed, expected, expected, "the last hidden states", step, "packed")

        return compare

    # -- both

    def _pool(self, num_layers: int) -> KVPool:
        shape = self._engine.kv_shape
        return KVPool(
            num_layers=num_layers,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            num_pages=NUM_PAGES,
            dtype=self._dtype,
            device=self._engine.device,
            layout="packed" if self._on_host else "HND",
        )

    def _context(self, pool: KVPool, step: CheckStep) -> StepContext:
        inputs = step.inputs
        slots = to_device(torch.from_numpy(inputs.slots), self._engine.device)
        if self._on_host:
            return StepContext(pool, slots, _host_plan(step))
        planner = make_planner(self._engine, pool)  # each its own, as it writes its plans over one another
        return StepContext(pool, slots, planner.update(inputs.tables, inputs.lengths, inputs.counts))

    def _copy_pages(self, pool: KVPool, step: CheckStep) -> None:
        if len(step.inputs.copies):
            pool.copy(to_device(torch.from_numpy(step.inputs.copies), self._engine.device))

    def _compare_layer(self, plain: _Plain, layer: int, step: CheckStep, path: str, got: Tensor) -> None:
        source = step.source.to(got.device)
        before, expected = plain.inputs[layer][..., source, :], plain.outputs[layer][..., source, :]
        added = expected - before if before.shape == expected.shape else expected
        # A sum with a large input is rounded as that is.
        floor = 0.002 * expected.abs()
        self._compare(got, expected, added, f"layer {layer}", step, path, floor=floor)

    def _compare_logits(self, plain: _Plain, got: Tensor, step: CheckStep, path: str) -> None:
        assert plain.logits is not None
        program = self._program
        rows = step.source[step.inputs.rows]
        text = rows // program.low.shape[1]
        place = torch.searchsorted(program.logit_rows, program.positions[rows])
        expected = plain.logits[text.to(got.device), place.to(got.device)].float()
        self._compare(got, expected, expected, "the logits", step, path, dtype=self._engine.dtype)

    def _compare(
        self,
        got: Tensor,
        expected: Tensor,
        scale: Tensor,
        what: str,
        step: CheckStep,
        path: str,
        *,
        floor: Tensor | float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Raises UnsupportedModel where a row differs by more than is allowed of its largest `scale`.

        got, expected: [..., T, size]. dtype: of the computation; default: that of the comparison.
        """
        tolerance = _TOLERANCE[dtype or self._dtype]
        name = type(self._engine.model).__name__
        if got.shape != expected.shape:
            raise UnsupportedModel(
                f"{name}: {what} has shape {list(got.shape)} in the {path} path and {list(expected.shape)} "
                "in the model's own forward"
            )
        unit = (scale.abs() + floor).amax(-1).float().clamp(min=1e-30)
        difference = ((got.float() - expected.float()).abs().amax(-1) / unit).flatten()
        largest = float(difference.max())
        if not math.isfinite(largest) and not bool(expected.isfinite().all()):
            raise UnsupportedModel(f"{name}: its own forward has NaN or inf in {what}: look at its weights")
        if not largest <= self.worst / self.tolerance * tolerance:
            self.worst, self.tolerance, self.place = largest, tolerance, f"{what}, {step.name}, {path} path"
        if not largest <= tolerance:
            rows = torch.tensor(step.inputs.rows) if what == "the logits" else torch.arange(len(step.source))
            row = int(difference.nan_to_num(math.inf).argmax()) % len(rows)
            position = step.inputs.positions[int(rows[row])]
            raise UnsupportedModel(
                f"{name} does not agree with its own forward: {what}, at position {position} in the step "
                f"'{step.name}' of the {path} path, differs by {largest:.2g} of its size, where rounding is "
                f"below {tolerance:g}. {_HINTS.get(what, _HINT)}, which is not served: use the model's own "
                "generate, or pass check=False to decode with such differences"
            )


def _host_plan(step: CheckStep) -> TreePlan:
    inputs = step.inputs
    return plan(inputs.tables, inputs.lengths, inputs.counts, page_size=PAGE_SIZE)


def _layers_of(model: nn.Module, attention: Sequence[nn.Module]) -> list[nn.Module]:
    """For each attention module the largest module of a list that holds no other."""
    names = {id(module): name for name, module in model.named_modules()}
    paths = [names[id(module)].split(".") for module in attention]
    layers = []
    for path in paths:
        for length in range(1, len(path) + 1):
            others = sum(other[:length] == path[:length] for other in paths)
            if others == 1 and isinstance(model.get_submodule(".".join(path[: length - 1])), nn.ModuleList):
                layers.append(model.get_submodule(".".join(path[:length])))
                break
        else:
            raise refusal(model, "layers that are not in a list")
    return layers


def _plain_attention(engine: HFEngine) -> str:
    """The model's own implementation, where it computes in float32 and reads no pages."""
    own: str = engine.config._attn_implementation
    if own in ("eager", "sdpa"):
        return own
    return "sdpa" if getattr(engine.model, "_supports_sdpa", False) else "eager"


def _special_tokens(config: Any) -> set[int]:
    """Ids that a config names: of padding, of ends, of places for images."""
    found = set()
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "_token_index")):
            found |= {token for token in (value if isinstance(value, list) else [value]) if token is not None}
    return found


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states [..., B, T, hidden] that a layer is called with."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})


def _first(result: Any) -> Tensor:
    hidden: Tensor = result if isinstance(result, Tensor) else result[0]
    return hidden


def _like(result: Any) -> Callable[[Tensor], Any]:
    """What makes other hidden states look as a layer returned them."""
    if isinstance(result, Tensor):
        return lambda hidden: hidden
    count = len(result)
    return lambda hidden: (hidden, *(None for _ in range(count - 1)))


def _take(states: Tensor, source: Tensor) -> Tensor:
    """Tokens of [..., N, hidden] as one text, [..., 1, T, hidden]."""
    return states[..., source.to(states.device), :].unsqueeze(-3)
