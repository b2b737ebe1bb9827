"""A mixture of experts as the MLP of a layer, as data, and checks that its weights fit together."""

from __future__ import annotations

from typing import NamedTuple

from .. import _core
from ..checks import flag, integer, real
from .packed_weight import PackedWeight
from .weight import (
    Weight,
    Weights,
    check_weight,
    check_weights,
    is_gated,
    matrices,
    matrix,
    outputs_of,
)


class SharedExpert(NamedTuple):
    """An MLP with SwiGLU whose output is added for every token (DeepSeekMoE, arXiv 2401.06066).

    Attributes:
        gate_up, down: same as for an expert; down without bias.
        share: hidden -> a number whose sigmoid scales the output (Qwen2-MoE); None: 1.
    """

    gate_up: Weight | tuple[Weight, ...]
    down: Weight
    share: Weight | None = None


class Experts(NamedTuple):
    """An MLP that is a mixture of experts: the sum of weight * expert(x) over the top_k experts of a token.

    Attributes:
        router: hidden -> a logit for each expert; weights are their softmax.
        gate_up, down: of each expert; gate_up gated, or the outputs of the gate followed by those of up.
        normalised: the weights of the chosen experts are scaled to sum to 1.
        clamp: alpha and limit of (u + 1) * g * sigmoid(alpha * g), which replaces SwiGLU: g is the gate,
            clamped to at most limit, u is up, clamped to [-limit, limit] (gpt-oss, arXiv 2508.10925). gate_up
            is then not gated. None: SwiGLU.
        shared: an expert that every token goes through; None: there is none.
    """

    router: PackedWeight
    gate_up: tuple[Weight | tuple[Weight, ...], ...]
    down: tuple[Weight, ...]
    top_k: int
    normalised: bool
    clamp: tuple[float, float] | None = None
    shared: SharedExpert | None = None


def check_mlp(names: tuple[str, str], gate_up: Weights, down: Weight, hidden: int, *, has_gate: bool) -> None:
    """Raises TypeError or ValueError unless the weights of an MLP fit. names: theirs, for messages."""
    outputs, gated = outputs_of(gate_up), is_gated(gate_up)
    mlp = outputs // 2 if has_gate and not gated else outputs
    sides = (outputs,) if mlp == outputs else (mlp, outputs - mlp)
    check_weights(names[0], gate_up, hidden, sides, gated=gated, whole=True)
    check_weight(names[1], down, mlp, hidden, whole=True)


def checked_experts(experts: Experts | None, hidden: int) -> _core.Experts | None:
    """Returns what the kernels read of a mixture.

    Raises:
        TypeError, ValueError: a weight or a number does not fit.
    """
    if experts is None:
        return None
    count = len(experts.down)
    check_weight("router", experts.router, hidden, count)
    top_k = integer("top_k", experts.top_k, 1)
    if top_k > count or len(experts.gate_up) != count:
        raise ValueError(
            f"experts: got {len(experts.gate_up)} gate_up, {count} down and top_k {top_k}, expected as many "
            "of both, and top_k of them at most"
        )
    for index, (first, second) in enumerate(zip(experts.gate_up, experts.down, strict=True)):
        names = f"gate_up of expert {index}", f"down of expert {index}"
        check_mlp(names, first, second, hidden, has_gate=True)
        if experts.clamp is not None and is_gated(first):
            raise ValueError(f"clamp: got numbers, expected None as gate_up of expert {index} is gated")
    gate_up, down = [matrices(one) for one in experts.gate_up], [matrix(one) for one in experts.down]
    normalised, clamp = flag("normalised", experts.normalised), _checked_clamp(experts.clamp)
    shared = _checked_shared(experts.shared, hidden)
    return _core.Experts(matrix(experts.router), gate_up, down, top_k, normalised, clamp, shared)


def _checked_shared(shared: SharedExpert | None, hidden: int) -> _core.SharedExpert | None:
    if shared is None:
        return None
    names = "gate_up of the shared expert", "down of the shared expert"
    check_mlp(names, shared.gate_up, shared.down, hidden, has_gate=True)
    if shared.down.bias is not None:
        raise ValueError(f"{names[1]}: got a bias, expected none")
    share = None
    if shared.share is not None:
        check_weight("share of the shared expert", shared.share, hidden, 1)
        share = matrix(shared.share)
    return _core.SharedExpert(matrices(shared.gate_up), matrix(shared.down), share)


def weights_of_experts(experts: Experts) -> dict[str, Weights]:
    """Returns the weights by their names in messages."""
    named: dict[str, Weights] = {"router": experts.router}
    for name in ("gate_up", "down"):
        weights = getattr(experts, name)
        named |= {f"{name} of expert {index}": weight for index, weight in enumerate(weights)}
    shared = {} if experts.shared is None else experts.shared._asdict()
    return named | {
        f"{name} of the shared expert": weights
        for name, weights in shared.items()
        if (name, weights) != ("share", None)
    }


def _checked_clamp(clamp: tuple[float, float] | None) -> tuple[float, float] | None:
    if clamp is None:
        return None
    if not isinstance(clamp, tuple) or len(clamp) != 2:
        raise TypeError(f"clamp: got {clamp!r}, expected (alpha, limit) or None")
    alpha, limit = (real(f"clamp[{index}]", one) for index, one in enumerate(clamp))
    if not (2.0**-20 <= alpha <= 2.0**20 and 2.0**-20 <= limit <= 2.0**20):
        raise ValueError(f"clamp: got {clamp!r}, expected two numbers from 2**-20 to 2**20")
    return alpha, limit
