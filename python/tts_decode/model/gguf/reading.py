"""Shared by all ways of reading a GGUF file: its config, and one error for whatever parsers raise."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import ModelLoadError
from ...extras import install_command
from ..transformers_output import first_line
from .config import config_of
from .header import Header
from .tokenizer import refuse_tokenizer


def checked_config(header: Header) -> Any:
    """Returns the config. Raises ModelLoadError for anything in the header that the config would lose."""
    refuse_tokenizer(header)
    return config_of(header)


def wrong_shape(file: Path, name: str, got: Any, expected: Any) -> ModelLoadError:
    return ModelLoadError(
        f"model: {file} is damaged: {name} got the shape {tuple(got)}, expected {tuple(expected)} by the "
        "file's keys; fetch it again"
    )


def not_finite(file: Path, name: str) -> ModelLoadError:
    return ModelLoadError(
        f"model: {file} is damaged: {name} holds values that are not finite; fetch it again"
    )


@contextlib.contextmanager
def parsing(file: Path) -> Iterator[None]:
    """Converts the parsers' exceptions into ModelLoadError, and keeps their output off the terminal."""
    try:
        # The converter draws a progress bar on stderr, whatever the settings of transformers.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except ModelLoadError:
        raise
    except ImportError as cause:
        raise _lacks_gguf(file) from cause
    except Exception as cause:  # damaged bytes can make the parsers raise anything
        raise _unreadable(file, cause) from cause


def _lacks_gguf(file: Path) -> ModelLoadError:
    return ModelLoadError(f"model: reading {file} needs the package gguf; run: {install_command('gguf')}")


def _unreadable(file: Path, cause: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"model: cannot read {file} as GGUF; it may be damaged or cut short (fetch it again), or of an "
        f"architecture that transformers does not convert. Cause: {first_line(cause)}"
    )
