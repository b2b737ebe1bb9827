"""For the reference: a function that a package exports hides the submodule of its name, as in Python."""

from __future__ import annotations

from typing import Any

import griffe


class Shadowed(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        hidden = [
            (module, name, target.members[name])
            for module in [pkg, *modules_below(pkg)]
            for name in map(str, module.exports or ())
            if (member := module.members.get(name)) is not None
            if isinstance(target := resolved(member), griffe.Module) and name in target.members
        ]
        for module, name, function in hidden:
            module.members[name] = griffe.Alias(name, function, parent=module)


def resolved(member: griffe.Object | griffe.Alias) -> griffe.Object | None:
    if not isinstance(member, griffe.Alias):
        return member
    try:
        return member.final_target
    except griffe.AliasResolutionError:  # of another package
        return None


def modules_below(module: griffe.Module) -> list[griffe.Module]:
    found = []
    for member in module.members.values():
        if isinstance(member, griffe.Module):
            found += [member, *modules_below(member)]
    return found
