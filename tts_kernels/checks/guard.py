"""Checks the calls of one operator, within a few microseconds once arguments of the same form have passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from .. import _core
from .arrays import require_dense
from .memory import check_storage, share_memory
from .signature import Footprint, Signature

# Returns the signature for arguments by name: it may depend on the dtype of the pages.
SignatureOf = Callable[[Mapping[str, Any]], Signature]


class Guard:
    """Checks the arguments of one operator, in their order; torch leaves out trailing defaults.

    The form of arguments is their dtypes, shapes, strides, devices and numbers. `look`, a C++ function, knows
    the forms that passed before. Within microseconds it checks what else may change: where the memory of the
    arguments lies, and how much there is. `settle` does the rest. A decode step calls the operators once per
    layer, all with one form.

    direct: calls bypass torch's dispatcher, so arguments may be of any class.
    accept: raises if no kernel serves arguments that fit.
    """

    def __init__(
        self,
        op: str,
        names: Sequence[str],
        signature_of: SignatureOf,
        defaults: Sequence[Any] = (),
        *,
        direct: bool = True,
        accept: Callable[[Footprint], None] = lambda known: None,
    ) -> None:
        self._op, self._names, self._signature_of = op, tuple(names), signature_of
        self._defaults = tuple(defaults)
        self._direct, self._accept = direct, accept
        self._forms = _core.Forms(torch, direct)
        self.look = self._forms.look  # args -> Footprint, or None to leave them to `settle`
        self.wants_derivative = self._forms.wants_derivative  # args -> whether `refuse_gradients` has to look

    def by_name(self, args: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self._names, (*args, *self._defaults[len(args) :]), strict=True))

    def check(self, args: tuple[Any, ...]) -> Footprint:
        """Returns the footprint of arguments that may be read and written.

        Raises:
            TypeError, ValueError: a kernel may not read or write what `args` point at.
        """
        return self.look(args) or self.settle(args)

    def settle(self, args: tuple[Any, ...]) -> Footprint:
        """Does the work of `check` for arguments that `look` does not know."""
        if self._direct:
            for name, value in zip(self._names, args, strict=True):
                if isinstance(value, Tensor):
                    require_dense(name, value)
            self.refuse_gradients(args)
        known: Footprint | None = self._forms.find(args)
        if known is None:
            values = self.by_name(args)
            known = self._signature_of(values).footprint(self._names, values)
            self._accept(known)
            self._forms.learn(args, known)
        self._check_memory(args, known)
        return known

    def explain(self, args: Sequence[Any]) -> None:
        """Raises what is wrong with arguments that torch refused, if the arguments are at fault."""
        values = self.by_name(args)
        self._signature_of(values).check(values)
        fake = [name for name, value in values.items() if isinstance(value, FakeTensor)]
        if fake:
            raise TypeError(f"{fake[0]}: got a fake tensor beside real ones, expected all or none to be fake")

    def trace(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> list[Tensor]:
        """Returns empty results for a tracer. Checks nothing that depends on sizes, which may be symbols."""
        values = {**self.by_name(args), **keywords}
        signature = self._signature_of(values)
        signature.check_kinds(values)
        device = signature.device_of(values)
        return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in signature.results(values)]

    def refuse_gradients(self, args: Sequence[Any]) -> None:
        """Raises if an argument requires a gradient: no operator here has a derivative."""
        if torch.is_grad_enabled():
            for i, a in enumerate(args):
                if isinstance(a, Tensor) and a.requires_grad:
                    raise ValueError(
                        f"{self._names[i]}: got a tensor that requires a gradient, which {self._op} does not "
                        f"have; call it under torch.no_grad() or with {self._names[i]}.detach()"
                    )
        if forward_ad._current_level < 0:
            return
        for i, a in enumerate(args):
            if isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None:  # type: ignore[no-untyped-call]
                raise ValueError(
                    f"{self._names[i]}: got a tensor with a tangent (forward-mode differentiation), but "
                    f"{self._op} has no derivative; pass {self._names[i]} without one"
                )

    def _check_memory(self, args: tuple[Any, ...], known: Footprint) -> None:
        for i, reach, item in known.spans:
            tensor = args[i]
            if tensor.storage_offset() * item + reach > tensor.untyped_storage().nbytes():
                check_storage(known.titles[i], tensor, reach)
        if known.writes:
            ranges = {}
            for i, reach, _ in known.spans:
                begin = args[i].data_ptr()
                ranges[i] = begin, begin + reach
            for written, other in known.writes:
                begin, end = ranges[written]
                first, last = ranges[other]
                if end <= first or last <= begin:
                    continue
                if share_memory(args[written], args[other]):
                    raise ValueError(
                        f"{known.titles[written]}: got memory that {known.titles[other]} shares, expected "
                        "memory of its own: it is written to"
                    )
                self._forms.learn_apart(args, written, other)
