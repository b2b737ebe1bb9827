"""A loaded model and the progress line on the terminal, for the duration of a subcommand."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from ..core.stats import DecoderStats
from ..decoding.decoder import TreeDecoder
from ..decoding.kv_budget import KVBudget
from ..decoding.offload import KVOffload
from ..model.loading import load_model
from ..model.sparse import SparseConfig
from . import model_options as model_opt
from .display import Display, Rate, kv_held
from .errors import MIB, MOST, UsageError, at_least, usage_errors
from .ranks import refuse_torchrun


@dataclass(frozen=True)
class Session:
    name: str
    model: Any
    tokenizer: Any
    display: Display
    kv_bytes: int | KVBudget | None
    kv_dtype: torch.dtype | None
    offload: KVOffload | None = None

    def decoder(self, sparse: SparseConfig | None = None, mesh: DeviceMesh | None = None) -> TreeDecoder:
        """Returns a new decoder on the model, with an empty KV tree and counters at zero.

        mesh: of torchrun's ranks, from `mesh_of_torchrun`; the model is then no longer whole.
        """
        if mesh is None:
            refuse_torchrun()
        gc.collect()  # a reference cycle may keep the previous decoder's pages
        total = self.kv_bytes.total if isinstance(self.kv_bytes, KVBudget) else self.kv_bytes
        given = {} if total is None else {"kv_bytes": f"--kv-mib: got {total // MIB}"}
        with usage_errors(given | model_opt.SPARSE_OPTIONS):
            return TreeDecoder(
                self.model,
                self.tokenizer,
                kv_bytes=self.kv_bytes,
                kv_dtype=self.kv_dtype,
                kv_offload=self.offload,
                sparse=sparse,
                device_mesh=mesh,
            )

    def watcher(self, title: str, tasks: int) -> Callable[[DecoderStats, int], None]:
        """Returns a function that shows a run's progress, given the decoder's state and the tasks done."""
        rate = Rate()
        self.display.stage(title if tasks == 1 else f"{title}, {tasks} problems")

        def show(stats: DecoderStats, done: int) -> None:
            head = title if tasks == 1 else f"{title} {done}/{tasks}"
            self.display.update(
                f"{head} · {stats.generated_tokens:,} tokens, {rate(stats.generated_tokens):.0f}/s · "
                f"{stats.branches} branches · KV {kv_held(stats)}"
            )

        return show

    def describe(self) -> dict[str, Any]:
        """Describes what ran, JSON-ready."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        device = str(self.model.device)
        return {
            "model": self.name,
            "dtype": dtype,
            "kv_dtype": dtype if self.kv_dtype is None else str(self.kv_dtype).removeprefix("torch."),
            "device": device,
            "threads": torch.get_num_threads(),
        }


def check_model_options(
    name: str, dtype: str, device: str, kv_mib: int | None, kv_dtype: str, weights: str
) -> None:
    """Raises UsageError for what is wrong whichever model it is, before anything is loaded."""
    at_least(1, MOST // MIB, kv_mib=kv_mib)
    if not name.strip():
        raise UsageError(f"--model: got {name!r}, expected a model's name, folder or file")
    if kv_dtype not in ("auto", "int8"):
        raise UsageError(f"--kv-dtype: got {kv_dtype!r}, expected auto or int8")
    for flag, value in (("--dtype", dtype), ("--weights", weights)):
        if value == "float16" and device.partition(":")[0] == "cpu":
            raise UsageError(f"{flag}: got float16 on the CPU, expected float32, bfloat16 or auto")


@contextmanager
def open_session(
    name: str,
    dtype: str,
    device: str,
    kv_mib: int | None,
    kv_dtype: str,
    *,
    weights: str = "auto",
    shared: bool = False,
    offload: KVOffload | None = None,
    display: Display | None = None,
) -> Iterator[Session]:
    """Loads the model and shows progress on stderr until the block ends.

    weights: as in `load_model`. shared: several decoders share `kv_mib`; only on the CPU, like `KVBudget`.
    display: one that is already shown.
    """
    check_model_options(name, dtype, device, kv_mib, kv_dtype, weights)
    # Its warnings address its callers: our own errors report what concerns the user.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with Display() if display is None else nullcontext(display) as display:
        display.stage(f"opening {name}")
        with usage_errors():
            model, tokenizer = load_model(
                name,
                dtype,
                weights=weights,
                device=device,
                pack_weights=True,
                on_progress=display.stage,
            )
        kv_bytes: int | KVBudget | None = None if kv_mib is None else kv_mib * MIB
        if shared and device == "cpu" and kv_mib is not None:
            kv_bytes = KVBudget(kv_mib * MIB)
        pages = torch.int8 if kv_dtype == "int8" else None
        yield Session(name, model, tokenizer, display, kv_bytes, pages, offload)
