"""Runs a Hugging Face decoder-only model with its attention over the tree's pages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from tts_kernels import TreePlan
from tts_kernels.device import checked_device

from ..cost.forward import SparseCounts
from ..errors import UnsupportedModelError
from .agreement.layer_calls import layers_of
from .families.conditions import why_general
from .layer_states import LayerStates
from .packed_model import PackedModel, pack_model, packed_others
from .quantised_modules import weight_shape
from .shape import shape_of_model
from .single_copy import unpack_modules
from .support.adapters import without_wrapper
from .support.features import (
    KVShape,
    refusal,
    refuse_calls,
    refuse_config,
    refuse_own_attention,
    refuse_placement,
    refusing,
)
from .support.length_settings import text_limit
from .support.masks import is_view_of, recorded_masks, refuse_masks
from .support.named_features import attention_modules
from .support.own_attention import own_attention, rerouted
from .tree_attention import (
    NAME,
    Probe,
    StepContext,
    any_mask,
    attend_pages,
    forward_under_way,
    tree_attention,
)
from .weights import weights_of


class Inputs(NamedTuple):
    """T new tokens of any number of branches, for one forward."""

    tokens: Tensor  # int64 [T] on the model's device
    positions: Tensor  # int64 [T] on the model's device
    rows: Tensor | None = None  # int64, which tokens need logits; None: all
    hidden: bool = False  # whether to return the last hidden states
    embeds: Tensor | None = None  # float [S, hidden], inputs of the S tokens of id -1, in order
    kept: LayerStates | None = None  # takes hidden states of layers


class Output(NamedTuple):
    logits: Tensor  # float32 [rows, vocab]
    hidden: Tensor | None  # float32 [T, hidden], the model's last hidden states
    masses: Tensor | None = None  # float32 [T, P], the share of each page in each token's attention
    pages: int = 0  # distinct pages of the step's plan
    sparse: SparseCounts | None = None  # what its sparse layers read
    layers: Tensor | None = None  # float32 [R, K, hidden], hidden states of R tokens at K layers


class HFEngine:
    """The model behind a decoder: checks it at load, then runs batched forwards over the pool's pages.

    For a model without LM head, such as a bare one or one with a class head, only the base model is run.
    pack_weights: on the CPU, models that `PackedModel` supports run through it.

    A forward uses the weights of `weights.epoch`; the caller has to `check` before whether they changed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: str | torch.device | None = None,
        *,
        pack_weights: bool = True,
    ) -> None:
        model = without_wrapper(model)
        if not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"model: got {type(model).__name__}, expected a causal language model of transformers"
            )
        refuse_config(model)
        if device is not None:
            model.to(checked_device(device))  # type: ignore[arg-type]
        refuse_placement(model)
        model.eval()
        self.model = model
        self.dtype = model.dtype
        self.has_lm_head = model.get_output_embeddings() is not None
        self.config = model.config.get_text_config(decoder=True)
        self._pack_weights = pack_weights
        self.weights = weights_of(model)
        self.weights.check()
        if packed_others(model):
            self.weights.changed()
        self._kept = self._properties()
        with self.weights.lock:
            self.kv_shape = self._examine()
        self._placing = self.weights.placing

    def _examine(self) -> KVShape:
        """Prepares the forward for the modules that the model currently has."""
        model = self.model
        packs = self._pack_weights and self.device.type == "cpu" and why_general(model) is None
        if not packs:
            unpack_modules(model)
        modules = list(model.modules())
        self._modules = list(map(ref, modules))  # listed once: a walk through all of them takes a millisecond
        configs = [getattr(module, "config", None) for module in modules]
        self._configs = list({id(c): c for c in configs if isinstance(c, PretrainedConfig)}.values())
        self._own_attention = own_attention(model)
        with refusing(model):
            probe = self._probe(any_mask(self.device))
            kv_shape = refuse_calls(model, probe.calls, probe.modules)
            self.calls = tuple(probe.calls)  # what each layer's attention hands over
            self.base = self._check_structure(probe)  # what gives the last hidden states, without head
            self.shape = shape_of_model(model, kv_shape)
        self.attention_modules = tuple(probe.modules)
        self.packed: PackedModel | None = None
        if packs:
            self.packed = self.make_packed()
        return kv_shape

    def make_packed(self) -> PackedModel:
        """Makes the model over packed weights, from their current values."""
        return pack_model(self.model, self.calls, self.weights.epoch)

    def _follow_weights(self) -> None:
        """Takes over what changed since the last forward.

        Raises:
            UnsupportedModelError: what the KV pages and the vocabulary were made for changed too.
        """
        if self._placing == self.weights.placing:
            if self.packed is not None and self.packed.epoch != self.weights.epoch:
                self.packed = self.make_packed()
            return
        if not self.model.training:
            self.model.eval()  # modules that are new
        for name, now in self._properties().items():
            _refuse_other(name, self._kept[name], now)
        _refuse_other("attention", self.kv_shape, self._examine())
        self._placing = self.weights.placing

    def _properties(self) -> dict[str, object]:
        table = weight_shape(self.model.get_input_embeddings())
        return {"device": self.device, "dtype": self.model.dtype, "embedding table": table}

    @property
    def max_positions(self) -> int | None:
        return text_limit(self.config).tokens

    @property
    def limit_note(self) -> str:
        """For errors that name the limit: why it is below the model's positions."""
        kind = text_limit(self.config).kind
        return f" (its rotary scaling of type {kind} turns longer texts by other frequencies)" if kind else ""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        generation = getattr(self.model, "generation_config", None)  # bare models have none
        eos = generation.eos_token_id if generation else None
        eos = getattr(self.config, "eos_token_id", None) if eos is None else eos
        if eos is None:
            return frozenset()
        return frozenset([eos] if isinstance(eos, int) else eos)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def num_layers(self) -> int:
        return len(self.calls)

    def forward(self, inputs: Inputs, context: StepContext) -> Output:
        """Runs new tokens through the model; their K and V go to the pool.

        If no token needs logits, nothing is multiplied with the vocabulary.
        """
        with self.weights.lock:
            self._follow_weights()
        packed = self.packed
        if packed is None:
            return self.general_forward(inputs, context)
        dense = None
        plain = context.masses is None and context.sparse is None and inputs.kept is None
        if plain and isinstance(context.plan, TreePlan):
            dense = context.pool, context.slots, context.plan
        with torch.inference_mode():
            with self.weights.lock:
                embedded = self.embed(inputs.tokens, inputs.embeds)
            attend = dense or partial(attend_pages, context)
            states, logits = packed.forward(
                embedded, inputs.positions, self.dtype, attend, inputs.rows, inputs.kept
            )
        masses = None if context.masses is None else context.masses.mean()
        return Output(logits, states if inputs.hidden else None, masses)

    def general_forward(self, inputs: Inputs, context: StepContext) -> Output:
        """Runs `forward` through the model's modules, even if weights are packed; one thread at a time."""
        rows, kept = inputs.rows, list[Tensor]()
        with (
            self.weights.lock,
            torch.inference_mode(),
            self.tree_attention(context, inputs.positions),
            ExitStack() as hooks,
        ):
            if inputs.kept is not None:
                inputs.kept.watch(hooks, layers_of(self.base, self.attention_modules))
            if inputs.hidden or inputs.kept is not None:
                keep = self.base.register_forward_hook(lambda _module, _args, out: kept.append(out[0]))
                hooks.callback(keep.remove)
            if rows is not None and not len(rows):
                self._call(self.base, inputs.tokens, inputs.positions, inputs.embeds)
                logits = torch.empty((0, self.config.vocab_size), device=self.device)
            else:
                wanted = 0 if rows is None else rows
                output = self._call(
                    self.model, inputs.tokens, inputs.positions, inputs.embeds, logits_to_keep=wanted
                )
                logits = output.logits[0].float()
                if rows is not None and len(logits) != len(rows):  # a class without logits_to_keep
                    logits = logits[rows]
        if inputs.kept is not None:
            inputs.kept.take(self.num_layers, kept[0][0])
        return Output(
            logits,
            kept[0][0].float() if inputs.hidden else None,
            None if context.masses is None else context.masses.mean(),
        )

    def embed(self, tokens: Tensor, embeds: Tensor | None = None) -> Tensor:
        """Returns inputs of the base model, [T, hidden]; `embeds` for the tokens of id -1."""
        inputs: Tensor = self.model.get_input_embeddings()(tokens.clamp(min=0))
        return inputs if embeds is None else inputs.masked_scatter((tokens < 0)[:, None], embeds.to(inputs))

    def _call(
        self,
        module: torch.nn.Module,
        tokens: Tensor,
        positions: Tensor,
        embeds: Tensor | None = None,
        **options: Any,
    ) -> Any:
        options = {"attention_mask": any_mask(self.device)} | options
        if embeds is None:
            options["input_ids"] = tokens[None]
        else:
            options["inputs_embeds"] = self.embed(tokens, embeds)[None]
        return module(position_ids=positions[None], use_cache=False, **options)

    def _probe(self, mask: Tensor | None, watched: Sequence[torch.nn.Module] = ()) -> Probe:
        model, probe = self.model, Probe()
        tokens = torch.zeros(2, dtype=torch.long, device=self.device)
        positions = torch.arange(2, device=self.device)
        hooks = [
            module.register_forward_hook(lambda ran, _args, _output: probe.ran.append(ran))
            for module in watched
        ]
        try:
            with torch.inference_mode(), self.tree_attention(probe, positions):
                if self.has_lm_head:
                    self._call(model, tokens, positions, attention_mask=mask, logits_to_keep=1)
                else:
                    self._call(model.base_model, tokens, positions, attention_mask=mask)
        except Exception:  # a model's own attention code may fail on the given mask
            served = {id(own.module) for own in self._own_attention}
            refuse_own_attention(model, [m for m in attention_modules(model) if id(m) not in served])
            raise
        finally:
            for hook in hooks:
                hook.remove()
        return probe

    def _check_structure(self, probe: Probe) -> torch.nn.Module:
        """Checks the masks that the model makes of ours, and those that it requests without one.

        Returns the largest module below the head that has all layers.
        """
        ours = any_mask(self.device)
        if any(mask is not None and not is_view_of(mask, ours) for mask in probe.masks):
            raise refusal(self.model, "an attention mask of its own")
        names = {id(module): name for name, module in self.model.named_modules()}
        parts = zip(*(names[id(module)].split(".") for module in probe.modules), strict=False)
        shared = [part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts)]
        bodies = [self.model.get_submodule(".".join(shared[: i + 1])) for i in range(len(shared))]
        with recorded_masks() as asked:
            second = self._probe(None, bodies)
        refuse_masks(self.model, asked, second.masks, self.calls, self.max_positions)
        if not self.has_lm_head:
            return self.model.base_model
        # Some heads run a part of the base model (OPT), others name it differently (Llama 4).
        return next((body for body in bodies if body in second.ran), self.model.base_model)

    @contextmanager
    def tree_attention(
        self, context: StepContext | Probe, positions: Tensor, layer: int = 0
    ) -> Iterator[None]:
        """Inside, the model's attention is the tree's; its first call is for this layer of the pool.

        positions: int64 [T], of the tokens.
        """
        with (
            forward_under_way(context, positions, layer),
            self.attention(NAME),
            rerouted(self._own_attention, tree_attention),
        ):
            yield

    @contextmanager
    def attention(self, name: str) -> Iterator[None]:
        """Runs the model with an attention implementation of transformers, and in eval mode.

        Eval mode applies even if the model or a part of it is being trained.
        """
        with self.weights.lock:
            training = [
                module for known in self._modules if (module := known()) is not None and module.training
            ]
            for module in training:
                module.training = False
            before = [config._attn_implementation_internal for config in self._configs]
            for config in self._configs:
                config._attn_implementation_internal = name
            try:
                yield
            finally:
                for module in training:
                    module.training = True
                for config, own in zip(self._configs, before, strict=True):
                    config._attn_implementation_internal = own


def _refuse_other(name: str, before: object, now: object) -> None:
    if before != now:
        raise UnsupportedModelError(
            f"model: its {name} changed from {before} to {now}, for which the decoder's KV pages were not "
            "made: make a new TreeDecoder"
        )
