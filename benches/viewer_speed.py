"""Measures the speed of the viewer's page with a large tree: python -m benches.viewer_speed [--nodes 10000]

Seconds from navigation until the tree is drawn and until it has answered a click, and frames per second while
the tree is moved, zoomed and shown over time, in Debian's Chromium without a window. Prints one line of JSON
per axis.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

from tts_decode.search import Candidate, KVSample, Node, SearchResult, SearchStats
from tts_decode.view import Shown, make_page

sys.path.append(str(Path(__file__).parents[1] / "tests/helpers"))

_WORDS = (
    "so",
    "the",
    "sum",
    "of",
    "two",
    "numbers",
    "is",
    "then",
    "12",
    "plus",
    "30",
    "gives",
    "42",
    "apples",
)
_SECONDS = 3.0  # of each measurement
# Run in the page: `move` once a frame for so many seconds; how many times a second the tree was drawn.
_FRAMES = """
const [move, seconds, done] = arguments, act = new Function("turn", move), tree = window.treeView.tree;
const began = performance.now(), before = tree.frames;
let turn = 0;
const frame = (now) => {
  if (now - began > 1000 * seconds) return done((tree.frames - before) / (now - began) * 1000);
  act(turn++);
  requestAnimationFrame(frame);
};
requestAnimationFrame(frame);
"""
_MOVES = {
    "pan": "treeView.tree.viewport.move(turn % 40 < 20 ? 9 : -9, turn % 60 < 30 ? 7 : -7); "
    "treeView.tree.redraw()",
    "wheel": "treeView.tree.canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: turn % 80 < 40 ? -60 : 60, "
    "clientX: 420, clientY: 420, bubbles: true, cancelable: true}))",
    "time": "treeView.timeline.set(treeView.state.search.ended * (turn % 120) / 120)",
}


def generated_search(count: int, seed: int = 0) -> SearchResult:
    """A search of `count` nodes of 1 to 40 tokens, whose branches fork and end step by step."""
    rng = random.Random(seed)
    nodes = [
        Node(
            0,
            -1,
            "<user> How many apples? <assistant>",
            tuple(range(40)),
            status="prompt",
            question="How many apples?",
        )
    ]
    live, step, samples = [0] * 24, 0, []
    while len(nodes) < count:
        began, children = 0.5 * step, []
        for parent in live:
            if len(nodes) == count:
                break
            words = [rng.choice(_WORDS) + " " for _ in range(rng.randint(1, 40))]
            ends = tuple(accumulate(map(len, words)))
            node = Node(
                len(nodes), parent, "".join(words), tuple(rng.randrange(49152) for _ in words), ends=ends
            )
            node.logprobs = tuple(-rng.expovariate(2.0) for _ in words)
            node.entropies = tuple(rng.expovariate(1.0) for _ in words)
            node.score, node.began, node.ended = rng.random(), began, began + 0.012 * len(words)
            node.status = "open"
            nodes.append(node)
            if parent and nodes[parent].status != "kept":
                nodes[parent].status = "kept"
            children.append(node.id)
        samples.append(KVSample(began + 0.5, len(children), 40 * len(children), 4096 * 40 * len(children)))
        live, step = [], step + 1
        for child in children:
            fate = rng.random()
            if fate < 0.30:
                nodes[child].status = "pruned"
            elif fate < 0.42:
                nodes[child].status = "finished"
            else:
                live += [child] * (1 if fate < 0.62 else 2 if fate < 0.9 else 3)
        live = live[:400] or [0] * 24
    ends = [node for node in nodes if node.status == "finished"]
    candidates = tuple(
        Candidate(n.text, n.tokens, sum(n.logprobs), n.score, (), "eos", n.id) for n in ends[:64]
    )
    stats = SearchStats(0.5 * step, sum(len(n.tokens) for n in nodes[1:]), tuple(samples), (), 16, 65536)
    return SearchResult("generated", candidates[-1], candidates, tuple(nodes), stats)


def measure(count: int) -> list[dict[str, Any]]:
    from chromium import browser  # type: ignore[import-not-found]

    page = make_page([Shown("generated", generated_search(count))], title=f"{count:,} nodes")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(page.html, encoding="utf-8")
        for axis in ("depth", "time"):
            with browser(Path(folder) / axis) as driver:
                began = time.perf_counter()
                driver.get(file.as_uri())
                drawn = driver.execute_async_script(
                    "const done = arguments[0], look = () => document.documentElement.dataset.drawn "
                    "? done(document.documentElement.dataset.drawn) : setTimeout(look, 5); look()"
                )
                driver.find_element("css selector", f"[data-axis={axis}]").click()
                usable = time.perf_counter() - began
                frames = {
                    name: round(driver.execute_async_script(_FRAMES, move, _SECONDS), 1)
                    for name, move in _MOVES.items()
                }
            rows.append(
                {"nodes": count, "axis": axis, "page_mib": round(len(page.html) / 2**20, 1)}
                | {
                    "drawn_s": round(int(drawn) / 1000, 2),
                    "usable_s": round(usable, 2),
                    "frames_per_second": frames,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    for row in measure(parser.parse_args().nodes):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
