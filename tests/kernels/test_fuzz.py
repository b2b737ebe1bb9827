"""Calls of everything public with changed arguments, in a process of their own; `make fuzz` makes more."""

from __future__ import annotations

from fuzz.run import outside


def test_calls_with_changed_arguments() -> None:
    calls, wrong = outside(first=0, calls=2000, slow=False)
    assert calls == 2000
    assert not wrong, "\n".join(wrong)


def test_plain_pages() -> None:
    calls, wrong = outside(first=0, calls=40, slow=True)
    assert calls == 40
    assert not wrong, "\n".join(wrong)
