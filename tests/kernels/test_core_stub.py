"""Holds the committed stub `_core.pyi` against the built module: the same names, kinds, parameters, texts."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

import tts_kernels
from tts_kernels import _core

# A public name to its parameters, or to "attribute", "property" or "class".
Surface = dict[str, list[str] | str]


def parameters(function: ast.FunctionDef) -> list[str]:
    """Names in order; "=" and the default where there is one. Annotations are the stub's own business."""
    names = [arg.arg for arg in function.args.posonlyargs + function.args.args]
    required = len(names) - len(function.args.defaults)
    defaults = [f"={ast.unparse(default)}" for default in function.args.defaults]
    return [name + default for name, default in zip(names, [""] * required + defaults, strict=True)]


def stub_surface(body: list[ast.stmt], prefix: str = "") -> Surface:
    surface: Surface = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            surface[prefix + node.name] = "class"
            surface |= stub_surface(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            is_property = any(ast.unparse(decorator) == "property" for decorator in node.decorator_list)
            surface[prefix + node.name] = "property" if is_property else parameters(node)
        elif isinstance(node, ast.AnnAssign):
            surface[prefix + ast.unparse(node.target)] = "attribute"
        elif isinstance(node, ast.Assign) and prefix:  # a member of an enumeration
            surface[prefix + ast.unparse(node.targets[0])] = "attribute"
    return surface


def built_surface(owner: ModuleType | type, prefix: str = "") -> Surface:
    surface: Surface = {}
    for name, value in vars(owner).items():
        signature = (value.__doc__ or "").split("\n")[0]  # as pybind11 writes it
        if name.startswith("_") and not signature.startswith("__init__("):
            continue
        if inspect.isclass(value) or inspect.ismodule(value):  # stubs have no modules inside
            surface[prefix + name] = "class"
            surface |= built_surface(value, f"{prefix}{name}.")
        elif isinstance(value, property):
            surface[prefix + name] = "property"
        elif callable(value):
            function = ast.parse(f"def {signature}: ...").body[0]
            assert isinstance(function, ast.FunctionDef)
            surface[prefix + name] = parameters(function)
        else:
            surface[prefix + name] = "attribute"
    return surface


def test_stub_matches_the_module() -> None:
    stub = Path(tts_kernels.__file__).with_name("_core.pyi").read_text()
    surface = stub_surface(ast.parse(stub).body)
    if not _core.cuda_archs:
        surface = {name: kind for name, kind in surface.items() if name.split(".")[0] != "cuda"}
    assert surface == built_surface(_core)


def stub_texts(body: list[ast.stmt], prefix: str = "") -> dict[str, str]:
    """Name to docstring, of everything that can have one."""
    texts: dict[str, str] = {}
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            texts[prefix + node.name] = ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef):
            texts |= stub_texts(node.body, f"{prefix}{node.name}.")
    return texts


def built_text(name: str) -> str:
    """The docstring that the bindings give, "" for none. pybind11 puts the signature in front."""
    owner: object = _core
    for part in name.split("."):
        owner = getattr(owner, part)
    text = inspect.cleandoc(owner.__doc__ or "")
    return text.partition("\n")[2] if text.startswith(f"{name.rpartition('.')[2]}(") else text


def test_every_name_says_what_it_is() -> None:
    """The stub matches the bindings."""
    texts = stub_texts(ast.parse(Path(tts_kernels.__file__).with_name("_core.pyi").read_text()).body)
    assert [name for name, text in texts.items() if not text] == []
    for name, text in texts.items():
        if name.split(".")[0] != "cuda" and (built := built_text(name)):
            assert text.split() == built.split(), name
