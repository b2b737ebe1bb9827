"""Constraints by a JSON schema, a regular expression, a grammar or a list of texts.

They are data; `start` needs the package llguidance.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from tts_kernels.checks import flag, instance, shown

from ...extras import require
from .protocol import Constraint, ConstraintState


class Compiled(ABC):
    """A constraint that llguidance compiles to a grammar, once for a tokenizer while it is in use."""

    _field: ClassVar[str]  # name of what the grammar comes from

    def start(self, tokenizer: Any) -> ConstraintState:
        """Before the first token.

        Raises:
            ConstraintError: it is malformed, or no text matches it.
            TypeError: the tokenizer's tokens have no bytes of their own.
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
        """As llguidance writes it."""


async def compile_aside(constraint: Constraint | None, tokenizer: Any) -> None:
    """Compiles what llguidance has to compile, in a worker thread, so that `start` is quick.

    Raises:
        ConstraintError, TypeError: as `Compiled.start`.
    """
    if isinstance(constraint, Compiled) and not constraint.is_compiled(tokenizer):
        await asyncio.to_thread(constraint.start, tokenizer)


@dataclass(frozen=True)
class JSONSchema(Compiled):
    """JSON that is valid under a schema.

    Args:
        schema: a mapping, or its JSON text, which is how it is kept. `{}` allows any JSON. Keywords that
            llguidance does not know are refused at `start`.
        whitespace: whether blanks and line breaks may stand between tokens of JSON.
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
    """Text of which all matches a regular expression, in the syntax of Rust's crate `regex`."""

    pattern: str

    def __post_init__(self) -> None:
        instance("pattern", self.pattern, str)

    _field = "pattern"

    def _grammar(self) -> str:
        from .matcher import regex_grammar

        return regex_grammar(self.pattern)


@dataclass(frozen=True)
class Grammar(Compiled):
    """Text that a context-free grammar derives: GBNF, as llama.cpp's (`root ::= "a" | "b" root`), or Lark's
    notation (`start: "a" | "b" start`)."""

    text: str

    def __post_init__(self) -> None:
        instance("text", self.text, str)

    _field = "grammar"

    def _grammar(self) -> str:
        from .matcher import context_free_grammar

        return context_free_grammar(self.text)


@dataclass(frozen=True)
class Choice(Compiled):
    """One of some texts; kept as a tuple."""

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
    """Values that JSON holds, for `constraint_of`; ValueError for a class that is none of these."""
    for kind, its_class in _KINDS.items():
        if type(constraint) is its_class:
            return {"kind": kind, **asdict(constraint)}
    raise ValueError(
        f"constraint: got a {type(constraint).__name__}, expected one of "
        f"{', '.join(its_class.__name__ for its_class in _KINDS.values())}; no other can be written to a file"
    )


def constraint_of(data: object) -> Constraint:
    """ValueError or TypeError where it is no `constraint_data`."""
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"constraint: got {shown(data)}, expected an object of kind {', '.join(_KINDS)}")
    return _KINDS[kind](**{name: value for name, value in data.items() if name != "kind"})
