"""The description of all arguments of an operator; the one place where arguments are checked against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from .arrays import Array, Sizes, evaluate, names_in, require_dense
from .memory import extent, overlaps_itself


class Number(NamedTuple):
    """A number argument and its range, as an expression: "0 < scale < inf".

    optional: None is allowed too. default: what torch's dispatcher takes if it is left out.
    """

    name: str
    range: str
    kind: type[int] | type[float] = int
    optional: bool = False
    default: float | None = None


class Numbers(NamedTuple):
    """An argument that is a list of numbers. default: what torch's dispatcher takes if it is left out."""

    name: str
    default: tuple[int, ...] | None = None


class Choice(NamedTuple):
    """An argument that is one of several dtypes."""

    name: str
    values: tuple[torch.dtype, ...]


Argument: TypeAlias = "Array | Number | Numbers | Choice"


class Rule(NamedTuple):
    """A relation of sizes and numbers; it does not apply if one of them comes from an argument that is None.

    blames: the argument that an error names.
    """

    blames: str
    holds: str


class Result(NamedTuple):
    """A tensor that an operator returns: an `Array`'s sizes, and a dtype or the argument that has it."""

    name: str
    shape: str
    dtype: torch.dtype | str


class Footprint(NamedTuple):
    """What each call has to check once dtypes, shapes, strides and numbers are known to fit.

    spans: index of each tensor, with the bytes that its elements reach over and the bytes of one element.
    writes: pairs of indices: a tensor that is written, and one that must not share memory with it.
    titles: names in errors, by index.
    results: shape and dtype of each result. device: their device. plain: whether the pages are plain.
    """

    spans: tuple[tuple[int, int, int], ...]
    writes: tuple[tuple[int, int], ...]
    titles: dict[int, str]
    results: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    device: torch.device
    plain: bool


class Signature:
    """The arguments and results of an operator.

    Args:
        arguments: in the order in which sizes are defined: the first argument to name one decides it.
        home: argument whose device all others, and the results, must share.
        results: what the operator returns.
        plain: whether it is for plain pages.
    """

    def __init__(
        self,
        *arguments: Argument | Rule,
        home: str,
        results: Sequence[Result] = (),
        plain: bool = False,
    ) -> None:
        self._arrays = [a for a in arguments if isinstance(a, Array) and not a.absent]
        self._absent = [a for a in arguments if isinstance(a, Array) and a.absent]
        self._numbers = [a for a in arguments if isinstance(a, Number)]
        self._choices = [a for a in arguments if isinstance(a, Choice)]
        self._rules = [a for a in arguments if isinstance(a, Rule)]
        self._home, self._results, self._plain = home, tuple(results), plain
        self.arguments = {a.name: a for a in arguments if not isinstance(a, Rule)}

    @property
    def result_names(self) -> list[str]:
        return [result.name for result in self._results]

    def schema(self, name: str, order: Sequence[str]) -> str:
        """Returns torch's schema of the operator `name` with its arguments in this order."""
        parts: list[str] = []
        letters = iter("abcdefgh")
        for argument in reversed(order):
            known = self.arguments[argument]
            trailing = all("=" in part for part in parts)
            parts.append(_declared(known, letters, with_default=trailing))
        results = [f"Tensor {result.name}" for result in self._results]
        returned = results[0].split()[0] if len(results) == 1 else f"({', '.join(results)})"
        return f"{name}({', '.join(reversed(parts))}) -> {returned}"

    def device_of(self, values: Mapping[str, Any]) -> torch.device:
        """Returns the device of the results."""
        device: torch.device = values[self._home].device
        return device

    def results(self, values: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], torch.dtype]]:
        """Returns shape and dtype of each result for arguments that fit; sizes may be a tracer's symbols."""
        if not self._results:
            return []
        sizes: Sizes = {number.name: values[number.name] for number in self._numbers}
        for array in self._arrays:
            if values.get(array.name) is not None:
                array.bind(values[array.name], sizes, {})
        return [
            (
                tuple(evaluate(size.strip(), sizes) for size in result.shape.split(",")),
                _dtype_of(values[result.dtype]) if isinstance(result.dtype, str) else result.dtype,
            )
            for result in self._results
        ]

    def check_kinds(self, values: Mapping[str, Any]) -> None:
        """Checks classes, devices, dtypes and numbers of dimensions: all that a tracer has to know."""
        present: list[tuple[Array, Any]] = [
            (a, values.get(a.name)) for a in self._arrays if not (a.optional and values.get(a.name) is None)
        ]
        for array, tensor in present:
            require_dense(array.title, tensor, fake=True)
        home = values[self._home].device
        for array, tensor in present:
            if tensor.device != home:
                raise ValueError(
                    f"{array.title}: got a tensor on {tensor.device}, expected {home}, where {self._home} is"
                )
        for array, tensor in present:
            array.check_kind(tensor)
            like = values[array.like] if array.like else tensor
            if tensor.dtype != like.dtype:
                raise TypeError(
                    f"{array.title}: got {tensor.dtype}, expected {like.dtype} as {array.like} has"
                )
        for array in self._absent:
            if values.get(array.name) is not None:
                raise ValueError(f"{array.name}: got a tensor, expected None: {array.absent}")

    def check(self, values: Mapping[str, Any]) -> Sizes:
        """Checks everything that needs no look at memory. Returns the sizes by name.

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        self.check_kinds(values)
        given = [n for n in self._numbers if not (n.optional and values[n.name] is None)]
        sizes: Sizes = {number.name: values[number.name] for number in given}
        for number in given:
            if not evaluate(number.range, sizes):
                raise ValueError(f"{number.name}: got {sizes[number.name]}, expected {number.range}")
        for name, allowed in self._choices:
            if values[name] not in allowed:
                raise TypeError(f"{name}: got {values[name]}, expected one of {', '.join(map(str, allowed))}")
        origins: dict[str, str] = {}
        present = [(a, values[a.name]) for a in self._arrays if values.get(a.name) is not None]
        for array, tensor in present:
            array.bind(tensor, sizes, origins)
        for array, tensor in present:
            array.check_layout(tensor, sizes, origins)
        for rule in self._rules:
            names = names_in(rule.holds)
            if all(name in sizes for name in names) and not evaluate(rule.holds, sizes):
                found = [f"{name} = {sizes[name]}" for name in names if name != rule.blames]
                if rule.blames in names:
                    beside = f" with {', '.join(found)}" if found else ""
                    raise ValueError(
                        f"{rule.blames}: got {sizes[rule.blames]}, expected {rule.holds}{beside}"
                    )
                raise ValueError(f"{rule.blames}: got {', '.join(found)}, expected {rule.holds}")
        for array, tensor in present:
            if array.written and overlaps_itself(tensor.shape, tensor.stride()):
                raise ValueError(
                    f"{array.title}: got shape {list(tensor.shape)} and strides {tensor.stride()}, expected "
                    "no two elements at one address: it is written to"
                )
        return sizes

    def footprint(self, names: Sequence[str], values: Mapping[str, Any]) -> Footprint:
        """Runs `check`, and returns what each call with tensors like these has to check."""
        self.check(values)
        indices = {a.name: names.index(a.name) for a in self._arrays if values.get(a.name) is not None}
        titles = {indices[a.name]: a.title for a in self._arrays if a.name in indices}
        spans = []
        for name, i in list(indices.items()):
            tensor = values[name]
            reach = extent(tensor.shape, tensor.stride()) * tensor.element_size()
            if reach:
                spans.append((i, reach, tensor.element_size()))
            else:
                del indices[name]
        written = [a.name for a in self._arrays if a.written and a.name in indices]
        writes = [
            (indices[one], indices[other])
            for one in written
            for other in indices
            if other != one and not (other in written and written.index(other) < written.index(one))
        ]
        results, device = tuple(self.results(values)), self.device_of(values)
        return Footprint(tuple(spans), tuple(writes), titles, results, device, self._plain)


def _declared(argument: Argument, letters: Iterator[str], *, with_default: bool) -> str:
    """Returns an argument as written in a schema, with its default if all arguments after it have one."""
    if isinstance(argument, Array):
        kind = f"Tensor({next(letters)}!)" if argument.written else "Tensor"
        optional = argument.optional or bool(argument.absent)
        return (
            f"{kind}? {argument.name}" + ("=None" if with_default else "")
            if optional
            else f"{kind} {argument.name}"
        )
    if isinstance(argument, Number):
        kind = argument.kind.__name__ + ("?" if argument.optional else "")
        has_default = with_default and (argument.optional or argument.default is not None)
        return f"{kind} {argument.name}" + (f"={argument.default}" if has_default else "")
    if isinstance(argument, Numbers):
        has_default = with_default and argument.default is not None
        return f"int[] {argument.name}" + (f"={list(argument.default or ())}" if has_default else "")
    return f"ScalarType {argument.name}"


def _dtype_of(value: Any) -> torch.dtype:
    return value if isinstance(value, torch.dtype) else value.dtype
