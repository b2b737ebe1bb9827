"""The general path over several ranks: transformers' plan, executed by torch's DTensor."""

from __future__ import annotations

from typing import Any

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ...errors import UnsupportedModelError
from ..quantised_modules import weight_shape
from .ranks import bounds

# A plan's entries for modules that every rank has whole, except for gradients.
_WHOLE = {"replicated_with_grad_allreduce", "embedding_rowwise", "embedding_colwise"}


def refuse_unplanned(model: Any) -> None:
    """Raises UnsupportedModelError for a model without a plan, or with unsupported entries in it."""
    name, plan = type(model).__name__, _plan(model)
    if not any(style == "rowwise" for style in plan.values()):
        raise UnsupportedModelError(
            f"device_mesh: {name} has no plan for tensor parallelism in transformers (base_model_tp_plan), "
            "and does not run over packed weights: run it without a mesh"
        )
    for module, style in plan.items():
        if style not in {"colwise", "rowwise", "colwise_gather_output", *_WHOLE}:
            raise UnsupportedModelError(
                f"device_mesh: {name}: transformers' plan has {style!r} for {module}, expected colwise and "
                "rowwise alone: run it without a mesh"
            )


def split_by_plan(model: Any, mesh: DeviceMesh) -> list[int]:
    """Keeps only this rank's part of the model's weights, in place; embeddings and norms stay whole.

    Returns the rows of the head on each rank; [] if it is whole, or there is none.
    """
    head = model.get_output_embeddings()
    styles: dict[str, Any] = {}
    for module, style in _plan(model).items():
        if style == "colwise":
            styles[module] = ColwiseParallel()
        elif style == "rowwise":
            styles[module] = RowwiseParallel()
    parallelize_module(model, mesh, styles)
    if head is None:
        return []
    parts = bounds(weight_shape(head)[0], mesh.size())
    if head.weight is model.get_input_embeddings().weight:  # the table stays whole
        head.weight = type(head.weight)(head.weight.detach().clone(), requires_grad=False)
    parallelize_module(head, mesh, ColwiseParallel(output_layouts=Shard(-1)))
    return [end - begin for begin, end in parts]


def _plan(model: Any) -> dict[str, str]:
    """Returns the plan of the layers; the head's is our own."""
    plan: dict[str, str] = model.tp_plan or {}
    return {name: style for name, style in plan.items() if not name.endswith("lm_head")}
