"""Reads the command line from the shell when the user presses Tab."""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "_TTS_DECODE_COMPLETE"
"""Set by the shell's script when it asks for completions."""


def command_line(environment: Mapping[str, str]) -> list[str]:
    """Returns the words typed after the command. bash passes them in another variable than zsh and fish."""
    words = environment.get("COMP_WORDS", environment.get("_TYPER_COMPLETE_ARGS", ""))
    return words.split()[1:]
