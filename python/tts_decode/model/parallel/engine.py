"""The forward of a model that several ranks hold together."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from tts_kernels import KVPool, KVTree

from ...cost.forward import ModelShape
from ...errors import UnsupportedModelError
from ..agreement.self_check import SelfCheck, check_agreement
from ..hf import HFEngine, Inputs, Output
from ..host_steps import HostSteps, StepInputs
from ..packed_model import PackedModel
from ..quantised_modules import Quantised
from ..tree_attention import StepContext
from . import plans, split_modules
from .identity import compare
from .ranks import Ranks, bounds
from .split_model import SplitModel

_TOKENS = 24  # of the text for comparison
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.05}  # of a row's largest logit

# Rows of x become int8 before products with quantised weights, so a sum's last bit may move a whole step.
_QUANTISED = 0.15


class SplitEngine(HFEngine):
    """An `HFEngine` for a model whose modules hold a rank's part.

    Its KV heads are this rank's, its `shape` the whole model's. The leader gets whole logits; each other rank
    gets the columns that it holds.
    """

    def __init__(
        self, model: Any, ranks: Ranks, widths: list[int], shape: ModelShape, *, pack_weights: bool
    ) -> None:
        """widths: rows of the head on each rank, [] where it is not split. shape: of the whole model."""
        self.ranks, self._widths = ranks, widths
        super().__init__(model, pack_weights=pack_weights)
        self.shape = shape
        self._epoch = self.weights.epoch

    def make_packed(self) -> PackedModel:
        return SplitModel(self.model, self.calls, self.weights.epoch, self.ranks)

    def forward(self, inputs: Inputs, context: StepContext) -> Output:
        """Runs `HFEngine.forward` on all ranks at once."""
        output = super().forward(inputs, context)
        if not self._widths or not len(output.logits):
            return output
        gathered = self.ranks.gather_columns(output.logits, self._widths)
        return output if gathered is None else output._replace(logits=gathered)

    def refuse_changed(self) -> None:
        """Raises UnsupportedModelError if the weights are no longer those that were split."""
        if self.weights.check() != self._epoch:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: its weights changed while rank {self.ranks.rank} holds a part "
                "of them: make a new decoder on all ranks, of a model that is loaded anew"
            )


def is_split(model: Any) -> bool:
    """Whether a model's modules hold one rank's part."""
    return model in _split


_split: WeakSet[Any] = WeakSet()


def split_engine(
    model: Any,
    ranks: Ranks,
    device: str | torch.device | None,
    *,
    pack_weights: bool,
    check: bool,
    settings: dict[str, Any],
) -> tuple[SplitEngine, SelfCheck | None]:
    """Takes a whole model that every rank has, checks it, and keeps only this rank's part, in place.

    settings: further settings that the ranks must share, by name.

    Raises:
        UnsupportedModelError, ValueError: the model cannot be split over this many ranks; it is unchanged.
        MeshError: the ranks differ, or one failed.
    """
    with ranks.together("the model"):
        whole = HFEngine(model, None, pack_weights=pack_weights)
        packs = whole.packed is not None
        refuse_sizes(whole, ranks.size)
        if packs:
            split_modules.refuse_unsplit(whole.model, ranks.size)
        else:
            plans.refuse_unplanned(whole.model)
    compare(ranks, whole.model, settings | {"path": "packed" if packs else "general"})
    with ranks.together("the model's self-check"):
        on_host = whole.device.type == "cpu"
        with whole.weights.lock:
            self_check = check_agreement(whole, on_host=on_host) if check else None
        expected = _logits(whole) if check and on_host else None
        shape, model = whole.shape, whole.model
        del whole
    with ranks.together("splitting the model"):
        _split.add(model)
        if packs:
            widths = split_modules.split_modules(model, ranks.rank, ranks.size)
        else:
            if device is not None:
                model.to(device)
            widths = plans.split_by_plan(model, ranks.mesh)
        engine = SplitEngine(model, ranks, widths, shape, pack_weights=pack_weights)
    if expected is not None:
        _compare_logits(engine, expected)
    return engine, self_check


def refuse_sizes(engine: HFEngine, size: int) -> None:
    """Raises ValueError, by name and number, for sizes that this many ranks do not divide."""
    config, shape = engine.config, engine.kv_shape
    kv_heads = getattr(config, "num_key_value_heads", None) or shape.num_kv_heads
    sizes = {"num_key_value_heads": kv_heads, "num_attention_heads": shape.num_q_heads}
    unit = 1
    if (width := getattr(config, "intermediate_size", None)) is not None:
        sizes["intermediate_size"] = width
    for name, number in sizes.items():
        unit = 16 if name == "intermediate_size" and engine.packed is not None else 1
        if number % (size * unit):
            whole = f" times {unit}, the rows of a panel" if unit > 1 else ""
            raise ValueError(
                f"device_mesh: got {size} ranks for a model with {name} {number}, expected a number of ranks "
                f"that{whole} divides it"
            )
    vocab = engine.config.vocab_size
    if engine.has_lm_head and any(begin == end for begin, end in bounds(vocab, size, split_modules.PANEL)):
        raise ValueError(
            f"device_mesh: got {size} ranks for a model with vocab_size {vocab}, expected fewer: a rank "
            "would hold no row of the head"
        )


def _logits(engine: HFEngine) -> Tensor:
    """Returns float32 [24, vocab] for a fixed text, or its last hidden states if there is no head."""
    shape = engine.kv_shape
    tree = KVTree(4, 16)
    pool = KVPool(
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        num_pages=4,
        dtype=engine.dtype,
    )
    vocab: int = engine.config.vocab_size
    tokens = [place * 7919 % vocab for place in range(_TOKENS)]
    branch = tree.create()
    appended = tree.append([branch], [tokens])
    tables, lengths = tree.block_tables([branch])
    places = list(range(_TOKENS))
    rows = places if engine.has_lm_head else []
    step = StepInputs(
        tokens, places, rows, appended.slots, appended.copies, tables, lengths, lengths, None, None
    )
    output = HostSteps(engine, pool).run(step, hidden=not rows)
    found = output.logits if output.hidden is None else output.hidden
    return found.clone()


def _compare_logits(engine: SplitEngine, expected: Tensor) -> None:
    """Raises if the ranks' joint result differs from the whole model's.

    The leader raises UnsupportedModelError, the other ranks MeshError.
    """
    found, worst = _logits(engine), 0.0
    if found.shape == expected.shape:
        most = expected.abs().amax(-1, keepdim=True).clamp(min=1e-6)
        worst = float(((found - expected).abs() / most).max())
    quantised = any(isinstance(module, Quantised) for module in engine.model.modules())
    tolerance = _QUANTISED if quantised else _TOLERANCE[engine.dtype]
    with engine.ranks.together("the self-check over all ranks"):
        if not worst <= tolerance:
            raise UnsupportedModelError(
                f"{type(engine.model).__name__} split over {engine.ranks.size} ranks differs from the whole "
                f"model by {worst:.3g} of a row's largest logit, expected at most {tolerance}: run it "
                "without a mesh, and report it"
            )
