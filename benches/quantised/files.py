"""The compared GGUF files: downloaded in packages, or written here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import gguf
from tts_decode.default_model import default_model_file

from benches.peers.engines import HERE, PeerError
from benches.quantised.gemma import gemma_file
from benches.quantised.random_gguf import SHAPES, config_of, repeat_layers, write_random

LAYERS = 8  # that are drawn of a random model; its others repeat them
WRITTEN = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # without llama.cpp's quantiser


def prepare_file(model: str, kind: str, folder: Path, threads: int) -> Path:
    """folder: of the peers' environments and models. Raises PeerError where llama.cpp is needed and missing,
    and ValueError for a kind in which the model does not come."""
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    if model not in SHAPES:
        comes = {"smollm2": "Q4_1", "gemma3-270m": "Q4_K_M"}
        if comes.get(model) != kind:
            raise ValueError(f"case: got {model}/{kind}, expected {model}/{comes.get(model)}")
        return default_model_file() if model == "smollm2" else gemma_file(models)
    path = models / f"{model}-{kind}.gguf"
    if not path.exists():
        base = _base_file(model, kind, folder, threads)
        tokenizer = default_model_file()
        repeat_layers(config_of(model, tokenizer), kind, base, path, tokenizer)
    return path


def _base_file(model: str, kind: str, folder: Path, threads: int) -> Path:
    """A file of LAYERS layers: numbers for a whole model take half an hour to draw and to quantise."""
    path = folder / f"models/{model}-{kind}-base.gguf"
    if not path.exists():
        if kind in WRITTEN:
            write_random(model, kind, path, default_model_file(), LAYERS)
        else:
            _quantise(_base_file(model, "Q8_0", folder, threads), kind, path, folder, threads)
    return path


def _quantise(source: Path, kind: str, path: Path, folder: Path, threads: int) -> None:
    python = folder / "llama.cpp/bin/python"
    if not python.exists():
        raise PeerError(f"{kind}: llama.cpp quantises to it, which is not installed; run with --setup")
    partial = path.with_suffix(".partial")
    command = [python, HERE / "llama_cpp_quantise.py", source, partial, kind, str(threads)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise PeerError(f"{kind}: {result.stderr.strip()[-300:]}")
    partial.rename(path)


def remove_files(model: str, folder: Path) -> None:
    """Those of a random model; others stay."""
    if model in SHAPES:
        for path in (folder / "models").glob(f"{model}-*.gguf"):
            path.unlink()


def step_bytes(path: Path) -> int:
    """Bytes of the weights that a step of one branch reads. Of an embedding apart from the head it reads next
    to none; of a mixture only some experts, and here all count."""
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    if "output.weight" in tensors:
        del tensors["token_embd.weight"]
    return sum(tensors.values())
