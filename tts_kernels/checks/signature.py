"""The description of an operator's arguments as a whole, and the one place where arguments meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .arrays import Array, Sizes, evaluate, names_in, require_dense
from .memory import extent, overlaps_itself


class Number(NamedTuple):
    """A number argument and the range that it has to be in, as an expression: "0 < scale < inf"."""

    name: str
    range: str


class Choice(NamedTuple):
    """An argument that is one of a few values."""

    name: str
    values: tuple[Any, ...]


class Rule(NamedTuple):
    """A relation of sizes and numbers; it says nothing where one comes with an argument that is None.

    `blames`: the argument that an error names.
    """

    blames: str
    holds: str


class Footprint(NamedTuple):
    """What has to be looked at in each call, once the dtypes, shapes, strides and numbers are known to fit.

    spans: index of each tensor, with the bytes that its elements reach over and its bytes an element.
    writes: pairs of indices: a tensor that is written, and one that must not share memory with it.
    titles: by index, the names in errors.
    """

    spans: tuple[tuple[int, int, int], ...]
    writes: tuple[tuple[int, int], ...]
    titles: dict[int, str]


class Signature:
    """What an operator takes.

    Args:
        arguments: in the order in which sizes get their meaning: the first to name one decides it.
        home: argument on whose device all others have to be.
        absent: arguments that must be None, with the reason.
    """

    def __init__(
        self,
        *arguments: Array | Number | Choice | Rule,
        home: str,
        absent: Mapping[str, str] | None = None,
    ) -> None:
        self._arrays = [a for a in arguments if isinstance(a, Array)]
        self._numbers = [a for a in arguments if isinstance(a, Number)]
        self._choices = [a for a in arguments if isinstance(a, Choice)]
        self._rules = [a for a in arguments if isinstance(a, Rule)]
        self._home = home
        self._absent = absent or {}

    def check_kinds(self, values: Mapping[str, Any]) -> None:
        """Classes, devices, dtypes and numbers of dimensions: all that a tracer has to know."""
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
        for name, reason in self._absent.items():
            if values.get(name) is not None:
                raise ValueError(f"{name}: got a tensor, expected None: {reason}")

    def check(self, values: Mapping[str, Any]) -> Sizes:
        """All that can be known without a look at memory. The sizes, by name.

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        self.check_kinds(values)
        sizes: Sizes = {number.name: values[number.name] for number in self._numbers}
        for number in self._numbers:
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
                    given = f" with {', '.join(found)}" if found else ""
                    raise ValueError(f"{rule.blames}: got {sizes[rule.blames]}, expected {rule.holds}{given}")
                raise ValueError(f"{rule.blames}: got {', '.join(found)}, expected {rule.holds}")
        for array, tensor in present:
            if array.written and overlaps_itself(tensor.shape, tensor.stride()):
                raise ValueError(
                    f"{array.title}: got shape {list(tensor.shape)} and strides {tensor.stride()}, expected "
                    "no two elements at one address: it is written to"
                )
        return sizes

    def footprint(self, names: Sequence[str], values: Mapping[str, Any]) -> Footprint:
        """`check`, and what to look at in each call with tensors like these."""
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
        return Footprint(tuple(spans), tuple(writes), titles)
