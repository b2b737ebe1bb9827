"""Finds where a module breaks the house rules (house_rules.py): imports, private names of other modules."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from house_rules import (
    DYNAMIC,
    FOREIGN,
    FRIENDS,
    KERNEL_MODULES,
    LATE_PACKAGES,
    LOADERS,
    MAY_IMPORT,
    NAMED_TUPLE,
    PACKAGES,
)

ROOT = Path(__file__).parents[2]
SOURCES = {"tts_decode": ROOT / "python/tts_decode", "tts_kernels": ROOT / "tts_kernels"}

_BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "methodcaller", "__getattribute__"}
_BY_TEXT = {"__import__", "exec", "eval"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Import(NamedTuple):
    """target: dotted name of a module. relative: with leading dots.

    late: inside a function, or for type checking.
    """

    line: int
    target: str
    relative: bool
    late: bool


@dataclass(frozen=True)
class Module:
    """One file. name: dotted. known: all modules of both packages."""

    name: str
    source: str
    is_package: bool
    known: frozenset[str]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    def faults(self) -> list[str]:
        found = [*self._import_faults(), *self._dynamic_faults(), *self._private_faults()]
        return [f"{self.name}:{line} {what}" for line, what in sorted(found)]

    def imports(self) -> list[Import]:
        return list(self._imports(self.tree, late=False))

    def _imports(self, node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(child.lineno, alias.name, False, late)
            elif isinstance(child, ast.ImportFrom):
                source = self._source_of(child)
                for alias in child.names:
                    inner = f"{source}.{alias.name}"
                    target = inner if inner in self.known else source
                    yield Import(child.lineno, target, bool(child.level), late)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from self._imports(child, late or typing_only or isinstance(child, _FUNCTIONS))

    def _source_of(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        base = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _import_faults(self) -> Iterator[tuple[int, str]]:
        here = room(self.name)
        for line, target, relative, late in self.imports():
            head = target.partition(".")[0]
            if head == self.package and not relative:
                yield line, f"imports {target} by its full name: a copy of the package imports itself"
            elif head == self.package:
                if here and room(target) not in {here, *MAY_IMPORT[self.package].get(here, ())}:
                    yield line, f"imports {target}"
            elif head not in sys.stdlib_module_names:
                allowed = PACKAGES[self.package].get(here, set())
                if late:
                    allowed = allowed | LATE_PACKAGES[self.package].get(here, set())
                if here and head not in allowed:
                    yield line, f"imports {target}"
                elif head == "tts_kernels":
                    rooms = KERNEL_MODULES.get(target, set())
                    if rooms is not None and here not in rooms:
                        yield line, f"imports {target}"
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.partition(".")[0] == "tts_kernels":
                        yield node.lineno, "imports tts_kernels as a whole: from tts_kernels import NAME"
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if is_private(alias.name) and alias.name != "_core":
                        yield node.lineno, f"imports {alias.name}"

    def _dynamic_faults(self) -> Iterator[tuple[int, str]]:
        for node in self.nodes:
            name = None
            if isinstance(node, ast.Attribute):
                name = node.attr
                if name == "modules" and ast.unparse(node) == "sys.modules" and self.name not in LOADERS:
                    yield node.lineno, "reads sys.modules"
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                name = "import_module" if "importlib.import_module" in names else None
                if "sys.modules" in names:
                    yield node.lineno, "reads sys.modules"
            elif isinstance(node, ast.Constant):
                name = node.value
            elif isinstance(node, ast.Name) and node.id in _BY_TEXT and self.name not in DYNAMIC:
                yield node.lineno, f"calls {node.id}"
            if name in ("import_module", "__import__") and self.name not in DYNAMIC:
                yield node.lineno, f"uses {name}"

    def _private_faults(self) -> Iterator[tuple[int, str]]:
        foreign = NAMED_TUPLE.union(
            *(names for name, names in FOREIGN.items() if f"{self.name}.".startswith(f"{name}."))
        )
        own = self._own_names
        friends = FRIENDS.get(self.name, set()) & own
        for node in self.nodes:
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                allowed = foreign | (own if _is_self(node.value) else friends)
                if node.attr not in allowed:
                    yield node.lineno, f"touches {ast.unparse(node)}"
            for text in _texts_as_names(node):
                for part in text.split("."):
                    if is_private(part) and part not in foreign:
                        yield getattr(node, "lineno", 0), f"touches {text!r} by its name"

    @cached_property
    def _own_names(self) -> set[str]:
        """Names that the module defines: at its top level, in classes, as attributes of self or cls."""
        names: set[str] = set()
        for scope in [self.tree, *(node for node in self.nodes if isinstance(node, ast.ClassDef))]:
            for statement in scope.body:
                if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
                    names.add(statement.name)
                elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
                    names |= {node.id for node in ast.walk(statement) if _is_stored(node, ast.Name)}
        for node in self.nodes:
            if _is_stored(node, ast.Attribute) and _is_self(node.value):
                names.add(node.attr)
        return names


def _is_stored(node: ast.AST, kind: type[ast.AST]) -> bool:
    return isinstance(node, kind) and isinstance(node.ctx, ast.Store)


def _texts_as_names(node: ast.AST) -> Iterator[str]:
    """Strings by which a node takes an attribute or an entry: getattr(x, "a"), vars(x)["a"]."""
    candidates: list[ast.AST] = []
    if isinstance(node, ast.Call) and _last_name(node.func) in _BY_NAME:
        candidates = list(node.args)
    elif isinstance(node, ast.Subscript):
        candidates = [node.slice]
    for candidate in candidates:
        if isinstance(candidate, ast.Constant) and isinstance(candidate.value, str):
            yield candidate.value


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _last_name(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def is_private(name: str) -> bool:
    return bool(re.match(r"_[^_]", name))


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def _dotted(package: str, file: Path) -> str:
    parts = [package, *file.relative_to(SOURCES[package]).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def known_modules() -> frozenset[str]:
    files = [(package, file) for package, base in SOURCES.items() for file in base.rglob("*.py*")]
    return frozenset(_dotted(package, file) for package, file in files if file.suffix in (".py", ".pyi"))


@cache
def read_modules(package: str) -> dict[str, Module]:
    """Dotted name -> module, of all Python files of a package."""
    known = known_modules()
    modules = [
        Module(_dotted(package, file), file.read_text(encoding="utf-8"), file.stem == "__init__", known)
        for file in SOURCES[package].rglob("*.py")
    ]
    return {module.name: module for module in modules}
