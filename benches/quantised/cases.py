"""Cases of `make bench-quantised`: model, kind of weights, tokens of the prompt, numbers of branches."""

from __future__ import annotations

from dataclasses import dataclass, replace

OURS, OURS_INT8 = ("ours",), ("ours, int8 KV",)
LLAMA_CPP = ("llama.cpp, F16 KV", "llama.cpp, F16 KV, flash", "llama.cpp, Q8_0 KV, flash")
OPENVINO = ("OpenVINO, u8 KV", "OpenVINO, bf16 KV")


@dataclass(frozen=True)
class Case:
    """A GGUF file and what is measured of it.

    settings: names in `engines.QUANTISED`, all loaded at once.
    prompts: lengths that decoding begins from, each prefilled once.
    prefills: lengths whose prefill is measured in every round. Without any length, only the memory after
        loading is told.
    plot: whether to draw tokens/s over branches.
    """

    model: str
    kind: str
    prompts: tuple[int, ...] = (512, 4096)
    branches: tuple[int, ...] = (1, 8, 64)
    settings: tuple[str, ...] = OURS + OURS_INT8 + LLAMA_CPP + OPENVINO
    prefills: tuple[int, ...] = ()
    plot: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}/{self.kind}"


# All settings of a case are loaded at once, so the largest models have fewer. OpenVINO takes several times a
# file's size while it loads.
_ALL = (
    Case("smollm2", "Q4_1"),
    Case("gemma3-270m", "Q4_K_M"),
    Case("wide", "Q4_0"),
    Case("wide", "Q8_0"),
    Case("llama-1b", "Q4_0", prefills=(2048,), plot=True),
    Case("llama-1b", "Q8_0", prefills=(2048,)),
    Case("olmoe", "Q4_K_M", prompts=(512,), branches=(1, 32), settings=OURS + LLAMA_CPP[:2]),
    Case("qwen3-4b", "Q4_K_M", prompts=(512,), settings=OURS + LLAMA_CPP[:2] + OPENVINO[:1]),
    Case("llama-8b", "Q4_K_M", prompts=(4096,), branches=(16,), settings=OURS + LLAMA_CPP[:2]),
    Case("llama-8b", "Q5_K_M", prompts=(), settings=OURS),
    Case("llama-8b", "Q4_0", prompts=(), settings=OURS),
    Case("llama-8b", "Q8_0", prompts=(), settings=OURS),
)
CASES = {case.name: case for case in _ALL}


def find(name: str) -> Case:
    """The case of this name, "model/kind"; of another kind, what is measured of the model otherwise.

    Raises ValueError for a model that is not there.
    """
    if name in CASES:
        return CASES[name]
    model, _, kind = name.partition("/")
    for case in _ALL:
        if case.model == model and kind:
            return replace(case, kind=kind, plot=False)
    raise ValueError(
        f"case: got {name!r}, expected one of {', '.join(CASES)}, or another kind of such a model"
    )
