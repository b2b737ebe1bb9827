"""The plan of the house: which room may import which, no circles, and nothing private across modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"tts_decode": ROOT / "python/tts_decode", "tts_kernels": ROOT / "tts_kernels"}

# Room of tts_decode -> rooms that it may import. A module beside the rooms counts as one.
MAY_IMPORT = {
    "errors": set(),
    "extras": set(),
    "version": set(),
    "default_model": {"errors"},
    "records": set(),
    "select": {"extras"},
    "cost": set(),
    "core": {"errors", "extras", "cost"},
    "tasks": {"extras", "records", "select"},
    "model": {"errors", "default_model", "cost", "core"},
    "completions": {"errors", "cost", "core"},
    "decoding": {"errors", "default_model", "cost", "core", "model", "select"},
    "rewards": {"errors", "extras", "core", "model", "decoding", "select"},
    "search": {"errors", "extras", "cost", "core", "records", "select", "rewards", "completions"},
    "bench": {"errors", "extras", "cost", "core", "model", "decoding", "rewards", "search", "tasks"},
    "serve": {
        *("errors", "extras", "core", "records", "model", "decoding", "completions", "rewards", "search"),
    },
    "cli": {
        *(
            "errors",
            "extras",
            "version",
            "default_model",
            "cost",
            "core",
            "records",
            "model",
            "decoding",
            "completions",
        ),
        *("select", "rewards", "search", "bench", "tasks", "serve"),
    },
}

# Names with an underscore that belong to other projects, which have no public ones for the same.
FOREIGN = {
    *("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_version"),  # torch
    *("_C", "_AutoDispatchBelowAutograd", "_schema", "_functorch", "_current_level", "_is_zerotensor"),
    *("_attn_implementation", "_attn_implementation_internal"),  # transformers
    *("_set_running_loop", "_enter_task", "_leave_task", "_exit", "_current_frames"),  # asyncio, os, sys
    *("_replace", "_asdict", "_fields"),  # named tuples
}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file."""
    base = SOURCES[package]
    found = {}
    for file in base.rglob("*.py"):
        parts = [package, *file.relative_to(base).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str, file: Path, known: dict[str, Path]) -> Iterator[tuple[str, ast.ImportFrom]]:
    """The modules of the same package that a module imports, those for type checking included."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield (f"{target}.{alias.name}" if f"{target}.{alias.name}" in known else target), node


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_rooms_import_what_lies_below_them() -> None:
    known = modules("tts_decode")
    wrong = []
    for name, file in known.items():
        if room(name) in ("", "__main__"):  # the face of the package
            continue
        for target, node in imported(name, file, known):
            if room(target) not in {room(name), *MAY_IMPORT[room(name)]}:
                wrong.append(f"{name}:{node.lineno} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_the_rooms_are_those_that_are_there() -> None:
    assert set(MAY_IMPORT) == {room(name) for name in modules("tts_decode")} - {"", "__main__"}


@pytest.mark.parametrize("package", SOURCES)
def test_no_circles(package: str) -> None:
    """Those that are closed by imports for type checking, or inside functions, are circles too."""
    known = modules(package)
    targets = {
        name: {target for target, _ in imported(name, file, known)} - {name, package}
        for name, file in known.items()
        if name != package
    }
    state: dict[str, bool] = {}  # module -> whether it is done

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name, True), " -> ".join([*path[path.index(name) :], name])
        if name not in state:
            state[name] = False
            for target in sorted(targets.get(name, ())):
                visit(target, (*path, name))
            state[name] = True

    for name in sorted(targets):
        visit(name, ())


@pytest.mark.parametrize("package", SOURCES)
def test_imports_inside_a_package_are_relative(package: str) -> None:
    """A copy of the package under another name then imports itself."""
    wrong = [
        f"{name}:{node.lineno}"
        for name, file in modules(package).items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and not node.level
        and (node.module or "").split(".")[0] == package
    ]
    assert not wrong


@pytest.mark.parametrize("package", SOURCES)
def test_nothing_private_is_touched_from_another_module(package: str) -> None:
    wrong = []
    for name, file in modules(package).items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        own = {
            *(node.name for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))),
            *(node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)),
            *(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _stored(node)),
            *(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _stored(node)),
        }
        for node in ast.walk(tree):
            touched = []
            if isinstance(node, ast.Attribute):
                touched = [node.attr]
            elif isinstance(node, ast.ImportFrom):
                touched = [alias.name for alias in node.names if alias.name != "_core"]
            wrong += [
                f"{name}:{node.lineno} {part}"
                for part in touched
                if part.startswith("_") and not part.startswith("__") and part not in own | FOREIGN
            ]
    assert not wrong, "\n".join(wrong)


def _stored(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)
