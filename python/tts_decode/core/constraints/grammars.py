"""Constraints by a JSON schema, a regular expression, a grammar or a list of texts.

Constraints are plain data; `start` needs the package llguidance.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from tts_kernels.checks import a_type, flag, instance, shown

from ...extras import require
from .protocol import Constraint, ConstraintState


class Compiled(ABC):
    """A constraint that llguidance compiles to a grammar, once per tokenizer while it is in use."""

    _field: ClassVar[str]  # name of the field that the grammar comes from

    def start(self, tokenizer: Any) -> ConstraintState:
        """Returns the state before the first token.

        Raises:
            ConstraintError: it is malformed, or no text matches it.
            TypeError: the tokenizer's tokens do not map to bytes.
        """
        require("llguidance")
        from .compiler import compiler_for

        return compiler_for(tokenizer).start(self, self._field, self._grammar)

    def is_compiled(self, tokenizer: Any) -> bool:
        """Whether `start` has nothing to compile."""
        require("llguidance")
        from .compiler import is_compiled

        return is_compiled(tokenizer, self)

    @abstractmethod
    def _grammar(self) -> str:
        """Returns the grammar in llguidance's format."""


async def compile_aside(constraint: Constraint | None, tokenizer: Any) -> None:
    """Compiles a constraint's grammar, if it has one, in a worker thread, so that `start` is quick.

    Raises:
        ConstraintError, TypeError: same as `Compiled.start`.
    """
    if isinstance(constraint, Compiled) and not constraint.is_compiled(tokenizer):
        await asyncio.to_thread(constraint.start, tokenizer)


@dataclass(frozen=True)
class JSONSchema(Compiled):
    """Allows JSON that is valid under a schema.

    Args:
        schema: a mapping, or its JSON text, which is the form it is kept in. `{}` allows any JSON. `start`
            refuses keywords that llguidance does not know.
        whitespace: whether spaces and line breaks are allowed between JSON tokens.
    """

    schema: str | Mapping[str, Any]
    whitespace: bool = True

    def __post_init__(self) -> None:
        schema = self.schema
        if not isinstance(schema, (str, Mapping)):
            raise TypeError(f"schema: got {shown(schema)}, expected a mapping or a JSON text")
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(parsed, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as cause:
            raise ValueError(f"schema: got {shown(schema)}, expected JSON ({cause})") from cause
        if not isinstance(parsed, Mapping):
            raise ValueError(f"schema: got {shown(schema)}, expected a JSON object")
        object.__setattr__(self, "schema", text)
        flag("whitespace", self.whitespace)

    _field = "schema"

    def _grammar(self) -> str:
        from .matcher import json_grammar

        return json_grammar(str(self.schema), self.whitespace)


@dataclass(frozen=True)
class Regex(Compiled):
    """Allows text that a regular expression matches as a whole, in the syntax of Rust's crate `regex`."""

    pattern: str

    def __post_init__(self) -> None:
        instance("pattern", self.pattern, str)

    _field = "pattern"

    def _grammar(self) -> str:
        from .matcher import regex_grammar

        return regex_grammar(self.pattern)


@dataclass(frozen=True)
class Grammar(Compiled):
    """Allows text that a context-free grammar derives.

    The notation is GBNF, as in llama.cpp (`root ::= "a" | "b" root`), or Lark's (`start: "a" | "b" start`).
    """

    text: str

    def __post_init__(self) -> None:
        instance("text", self.text, str)

    _field = "grammar"

    def _grammar(self) -> str:
        from .matcher import context_free_grammar

        return context_free_grammar(self.text)


@dataclass(frozen=True)
class Choice(Compiled):
    """Allows one of several texts; kept as a tuple."""

    options: Sequence[str]

    def __post_init__(self) -> None:
        options = self.options
        if isinstance(options, str) or not isinstance(options, Sequence) or not options:
            raise TypeError(f"options: got {shown(options)}, expected a list of texts")
        for i, option in enumerate(options):
            if not isinstance(option, str) or not option:
                raise ValueError(f"options[{i}]: got {shown(option)}, expected a text that is not empty")
        object.__setattr__(self, "options", tuple(options))

    _field = "options"

    def _grammar(self) -> str:
        from .matcher import choice_grammar

        return choice_grammar(self.options)


_KINDS: dict[str, type[JSONSchema | Regex | Grammar | Choice]] = {
    "json_schema": JSONSchema,
    "regex": Regex,
    "grammar": Grammar,
    "choice": Choice,
}


def constraint_data(constraint: Constraint) -> dict[str, Any]:
    """Returns JSON values for `constraint_of`; raises ValueError for a class that is none of these."""
    for kind, its_class in _KINDS.items():
        if type(constraint) is its_class:
            return {"kind": kind, **asdict(constraint)}
    raise ValueError(
        f"constraint: got {a_type(constraint)}, expected one of "
        f"{', '.join(its_class.__name__ for its_class in _KINDS.values())}; no other can be written to a file"
    )


def constraint_of(data: object) -> Constraint:
    """Makes the constraint of `constraint_data`; raises ValueError or TypeError for other data."""
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"constraint: got {shown(data)}, expected an object of kind {', '.join(_KINDS)}")
    return _KINDS[kind](**{name: value for name, value in data.items() if name != "kind"})
