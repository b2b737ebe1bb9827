"""The plan of the house: which room may import what, no circles, nothing private across modules; and that the
check finds code which leaves the plan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from house_checks import SOURCES, Module, known_modules, read_modules, room
from house_rules import DYNAMIC, FOREIGN, FRIENDS, KERNEL_MODULES, LATE_PACKAGES, MAY_IMPORT, PACKAGES


@pytest.mark.parametrize("package", SOURCES)
def test_modules_keep_to_the_plan(package: str) -> None:
    faults = [fault for module in read_modules(package).values() for fault in module.faults()]
    assert not faults, "\n".join(faults)


def test_the_rooms_are_those_that_are_there() -> None:
    for package, rooms in MAY_IMPORT.items():
        there = {room(name) for name in known_modules() if name.startswith(f"{package}.")}
        assert set(rooms) == there
        assert set().union(*rooms.values(), PACKAGES[package], LATE_PACKAGES[package]) <= {"", *there}


def test_the_lists_of_exceptions_name_modules_that_are_there() -> None:
    assert {*DYNAMIC, *FOREIGN, *FRIENDS, *KERNEL_MODULES} <= known_modules()


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by name alone, and refuses the second one."""
    names = Counter(file.name for file in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("package", SOURCES)
def test_an_integration_imports_no_other_one(package: str) -> None:
    """Each serves one framework, which may be the only one there."""
    wrong = [
        f"{name} imports {found.target}"
        for name, module in read_modules(package).items()
        for found in module.imports()
        if room(name) == room(found.target) == "integrations"
        and name.split(".")[2:3] != found.target.split(".")[2:3]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", SOURCES)
def test_no_circles(package: str) -> None:
    """Imports for type checking or inside functions can close circles too."""
    targets = {
        name: {found.target for found in module.imports() if found.target.startswith(f"{package}.")} - {name}
        for name, module in read_modules(package).items()
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


# Code that leaves the plan, and a part of what is said of it.
SNEAKY = [
    ("tts_decode.core.path", "import tts_decode.search.run as later", "by its full name"),
    ("tts_decode.core.path", "import tts_decode\ntts_decode.TreeDecoder", "by its full name"),
    ("tts_decode.core.path", "def f():\n    from tts_decode import TreeDecoder", "by its full name"),
    ("tts_decode.core.path", "def f():\n    from .. import TreeDecoder", "imports tts_decode"),
    ("tts_decode.core.path", "def f():\n    from ..search import run", "imports tts_decode.search.run"),
    ("tts_decode.core.path", "from ..search.run import SearchRun", "imports tts_decode.search.run"),
    (
        "tts_decode.core.path",
        "if TYPE_CHECKING:\n    from ..search.run import SearchRun",
        "imports tts_decode.search.run",
    ),
    ("tts_decode.core.path", 'from importlib import import_module\nimport_module("x")', "uses import_module"),
    ("tts_decode.core.path", "from importlib import import_module as load", "uses import_module"),
    ("tts_decode.core.path", 'import importlib\nimportlib.import_module("x")', "uses import_module"),
    ("tts_decode.core.path", 'import importlib\ngetattr(importlib, "import_module")', "uses import_module"),
    ("tts_decode.core.path", '__import__("tts_decode.search.run")', "calls __import__"),
    ("tts_decode.core.path", 'import builtins\nbuiltins.__import__("x")', "uses __import__"),
    ("tts_decode.core.path", 'exec("import tts_decode")', "calls exec"),
    ("tts_decode.core.path", 'import sys\nsys.modules["tts_decode.search"]', "reads sys.modules"),
    ("tts_decode.core.path", "from sys import modules", "reads sys.modules"),
    ("tts_decode.core.path", "from tts_kernels._core import KVTree", "imports tts_kernels._core"),
    ("tts_decode.core.path", "from tts_kernels import _core", "imports tts_kernels._core"),
    ("tts_decode.core.path", "from tts_kernels import _namespace", "imports tts_kernels._namespace"),
    ("tts_decode.core.path", "from tts_kernels._namespace import NAMESPACE", "tts_kernels._namespace"),
    ("tts_decode.core.path", "import tts_kernels._namespace as n", "imports tts_kernels._namespace"),
    ("tts_decode.core.path", "import tts_kernels\ntts_kernels.ops", "as a whole"),
    ("tts_decode.core.path", "from tts_kernels.checks import values", "imports tts_kernels.checks.values"),
    ("tts_decode.core.path", "import transformers", "imports transformers"),
    ("tts_decode.core.path", "import benches.check_dist", "imports benches"),
    ("tts_decode.core.path", "def f():\n    from benches import check_dist", "imports benches"),
    ("tts_decode.select.votes", "import scipy", "imports scipy"),
    ("tts_decode.__main__", "from .search import run", "imports tts_decode.search.run"),
    ("tts_kernels.pool", "import tts_decode.core.budget", "imports tts_decode.core.budget"),
    ("tts_kernels.pool", "def f():\n    from tts_decode import Budget", "imports tts_decode"),
    ("tts_kernels.pool", "def f():\n    import transformers", "imports transformers"),
    ("tts_kernels.checks.memory", "def f():\n    from ..layers import decoder_layers", "tts_kernels.layers"),
    ("tts_kernels.reference.rms_norm", "def f():\n    from ..backends import choice", "tts_kernels.backends"),
    ("tts_kernels.reference.rms_norm", "from ..ops import append_kv", "imports tts_kernels.ops"),
    ("tts_kernels.ops.append_kv", "from .. import append_kv", "imports tts_kernels"),
    ("tts_decode.core.path", "from .running import _place as p", "imports _place"),
    ("tts_decode.core.path", "from . import running\nrunning._place", "touches running._place"),
    ("tts_decode.core.path", "from . import running as _r\n_r._place", "touches _r._place"),
    ("tts_decode.core.path", 'getattr(running, "_place")', "touches '_place'"),
    ("tts_decode.core.path", 'setattr(running, "_place", 1)', "touches '_place'"),
    ("tts_decode.core.path", 'operator.attrgetter("a._place")', "touches 'a._place'"),
    ("tts_decode.core.path", 'vars(running)["_place"]', "touches '_place'"),
    ("tts_decode.core.path", 'running.__dict__["_place"]', "touches '_place'"),
    ("tts_decode.core.path", "def f(o):\n    o._qq = 1\n    return o._qq", "touches o._qq"),
    (
        "tts_decode.core.path",
        "class X:\n    def __init__(self, other):\n        self._zz = 1\n        self.v = other._zz",
        "touches other._zz",
    ),
    ("tts_decode.core.path", "class X:\n    def f(self):\n        return self._inherited", "self._inherited"),
    ("tts_decode.core.path", "def f(tensor):\n    return tensor._version", "touches tensor._version"),
    ("tts_decode.search.result", "def f(o):\n    o._other", "touches o._other"),
]


@pytest.mark.parametrize(("name", "source", "said"), SNEAKY, ids=range(len(SNEAKY)))
def test_what_leaves_the_plan_is_found(name: str, source: str, said: str) -> None:
    faults = Module(name, source, False, known_modules()).faults()
    assert any(said in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "tts_decode.core.path",
            "from ..errors import StaleKVError\nfrom .budget import Budget\nimport torch",
        ),
        ("tts_decode.core.path", "from tts_kernels.checks import integer\nfrom tts_kernels import KVTree"),
        ("tts_decode.core.path", "def f():\n    import transformers"),
        ("tts_decode.core.path", "class X:\n    def f(self):\n        self._a = 1\n        return self._a"),
        ("tts_kernels.layers.packed_linear", "from .. import _core\nfrom ..checks import Guard"),
        ("tts_decode.core.path", 'import sys\nfrom importlib.util import find_spec\ngetattr(sys, "path")'),
    ],
)
def test_what_keeps_to_the_plan_passes(name: str, source: str) -> None:
    assert Module(name, source, False, known_modules()).faults() == []
