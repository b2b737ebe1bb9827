"""The tree that a search explored, kept after its branches are gone, and its rendering as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..core.visible import one_line
from ..records.plain_data import MAY_LACK

Status = Literal["prompt", "kept", "pruned", "finished", "open"]


@dataclass
class Node:
    """One run of tokens of one or more branches: a prompt, a sampled step, or forced text.

    Attributes:
        id, parent: indices of this node and of its parent in the tree's list; -1 above a prompt.
        at: number of the parent's tokens that come before this node; None: all of them.
        text: what the step generated; for a prompt, its text, with everything that a chat template adds.
        question: for a prompt, the question; "" elsewhere, and in older files.
        tokens: ids of the step's tokens; -1 for a token without an id (an embedding, or an engine that hides
            it).
        logprobs, entropies: one entry per token, nats, of the model's own distribution; empty for a prompt,
            and if the engine does not report them.
        ends: number of characters of the text up to the end of each token; empty for a prompt, if the engine
            does not report it, and in older files.
        score: the scorer's value for the text up to here; None if it was not called.
        status: "prompt"; "kept": the search continued from here; "pruned": it did not; "finished": a branch
            ended here; "open": still alive when the search ended.
        forced: whether the tokens were given rather than sampled.
        sources: for a prompt, the nodes whose text it was made from.
        began, ended: seconds since the search began; not compared by `==`.
    """

    id: int
    parent: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    entropies: tuple[float, ...] = ()
    at: int | None = None
    score: float | None = None
    status: Status = "open"
    forced: bool = False
    sources: tuple[int, ...] = ()
    began: float = field(default=0.0, compare=False)
    ended: float = field(default=0.0, compare=False)
    question: str = field(default="", metadata=MAY_LACK)
    ends: tuple[int, ...] = field(default=(), metadata=MAY_LACK)


_MARKS = {"prompt": "", "kept": "", "pruned": "x ", "finished": "# ", "open": "~ "}
_UNICODE, _ASCII = ("├─ ", "└─ ", "│  ", "   "), ("|- ", "`- ", "|  ", "   ")


def render_tree(
    nodes: Sequence[Node], *, best: int | None = None, width: int = 100, ascii_only: bool = False
) -> str:
    """Returns the tree as text, one line per node: status mark, score, tokens and text.

    The text is the step's, or a prompt's question, cut to `width` columns with control characters escaped.

    Marks: `x` pruned, `#` finished, `~` still open, and `*` on the path to the node `best`. A run of nodes
    without a fork is drawn as one line with the last one's score. `^3` says that a node took only the first 3
    tokens of the one above.
    """
    if width < 20:
        raise ValueError(f"width: got {width}, expected at least 20 columns")
    children: dict[int, list[Node]] = {}
    for node in nodes:
        children.setdefault(node.parent, []).append(node)
    on_path: set[int] = set()
    while best is not None and best >= 0:
        on_path.add(best)
        best = nodes[best].parent

    last_but_one, last, bar, gap = _ASCII if ascii_only else _UNICODE
    lines: list[str] = []
    pending = [
        (node, "", "") for node in reversed(children.get(-1, []))
    ]  # (node, indent of its line, and below it)
    while pending:
        node, indent, below = pending.pop()
        text, tokens = node.question or node.text, len(node.tokens)
        cut = "" if node.at is None else f"^{node.at} "
        while node.status == "kept" and len(below_it := children.get(node.id, [])) == 1:
            if below_it[0].at is not None:
                break
            (node,) = below_it
            text, tokens = text + node.text, tokens + len(node.tokens)
        score = "" if node.score is None else f"{node.score:.3f} "
        star = "* " if node.id in on_path else ""
        head = f"{indent}{star}{_MARKS[node.status]}{cut}{score}[{tokens}] "
        lines.append(head + _one_line(text, width - len(head), ascii_only))
        forks = children.get(node.id, [])
        for i, child in reversed(list(enumerate(forks))):
            ends = i == len(forks) - 1
            pending.append((child, below + (last if ends else last_but_one), below + (gap if ends else bar)))
    return "\n".join(lines)


def _one_line(text: str, width: int, ascii_only: bool) -> str:
    text = one_line(text)
    if ascii_only:
        text = text.encode("ascii", "replace").decode("ascii")
    width = max(width, 10)
    return text if len(text) <= width else text[: width - 3] + "..."
