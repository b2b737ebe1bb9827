"""What ranks must have in common before they hold one model together."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import transformers
from torch import Tensor

from ...errors import MeshError
from ..quantised_modules import Quantised
from .ranks import Ranks

_PIECES, _EACH = 16, 64  # pieces of a tensor that are read, and their size


def compare(ranks: Ranks, model: Any, settings: dict[str, Any]) -> None:
    """Compares everything that a model's results depend on, and the settings, with the leader's.

    16 pieces are read of a tensor: another training is detected, a change of a single number is not.

    Raises MeshError on all ranks, with each rank that differs and what differs.
    """
    own = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "the model's config": _digest(_config(model).encode()),
        "the weights' names, shapes and dtypes": _digest(_table(model).encode()),
        "the weights": _digest(*map(_sample, _tensors(model).values())),
    } | {name: str(value) for name, value in settings.items()}
    told = [ranks.gather_texts(f"{name}: {value}") for name, value in own.items()]
    wrong = [
        f"rank {rank} of {ranks.size} has {texts[rank]}, rank 0 has {texts[0]}"
        for texts in told
        for rank in range(ranks.size)
        if texts[rank] != texts[0]
    ]
    if wrong:
        raise MeshError(
            f"the ranks differ: {'; '.join(wrong)}; start all with the same packages, model and settings"
        )


def _config(model: Any) -> str:
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    return json.dumps(config, sort_keys=True, default=str)


def _tensors(model: Any) -> dict[str, Tensor]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return dict(sorted(named.items()))


def _table(model: Any) -> str:
    rows = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in _tensors(model).items()]
    forms = [(name, str(m.form)) for name, m in model.named_modules() if isinstance(m, Quantised)]
    return repr((rows, forms))


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if len(flat) > _PIECES * _EACH:
        starts = torch.linspace(0, len(flat) - _EACH, _PIECES, dtype=torch.float64).long().tolist()
        flat = torch.cat([flat[start : start + _EACH] for start in starts])
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _digest(*parts: bytes) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(part)
    return made.hexdigest()[:16]
