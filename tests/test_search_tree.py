"""The explored tree as text."""

import pytest
from tts_decode.search import Node, render_tree

NODES = [
    Node(0, -1, "What is\n2 + 3?", 7, None, "prompt"),
    Node(1, 0, "First, ", 2, 0.5, "kept"),
    Node(2, 0, "Hm", 1, 0.125, "pruned"),
    Node(3, 1, "we add", 2, 0.75, "kept"),
    Node(4, 3, " to 5", 2, 0.9, "finished"),
    Node(5, 3, " to é", 2, 0.25, "open"),
]


def test_tree_as_text():
    assert render_tree(NODES, best=4).splitlines() == [
        "* [7] What is 2 + 3?",
        "├─ * 0.750 [4] First, we add",
        "│  ├─ * # 0.900 [2] to 5",
        "│  └─ ~ 0.250 [2] to é",
        "└─ x 0.125 [1] Hm",
    ]


def test_tree_in_ascii_without_a_best_node():
    assert render_tree(NODES, ascii_only=True).splitlines() == [
        "[7] What is 2 + 3?",
        "|- 0.750 [4] First, we add",
        "|  |- # 0.900 [2] to 5",
        "|  `- ~ 0.250 [2] to ?",
        "`- x 0.125 [1] Hm",
    ]


def test_long_text_is_cut_to_the_width():
    nodes = [Node(0, -1, "word " * 50, 50, None, "prompt")]
    (line,) = render_tree(nodes, width=40).splitlines()
    assert len(line) == 40
    assert line.endswith("...")
    with pytest.raises(ValueError, match="width=5"):
        render_tree(nodes, width=5)


def test_a_deep_tree_needs_no_recursion():
    nodes = [Node(i, i - 1, "a", 1, 0.0, "kept") for i in range(5000)]
    nodes += [Node(5000, 4999, "b", 1, 0.0, "finished"), Node(5001, 4999, "c", 1, 0.0, "pruned")]
    assert len(render_tree(nodes).splitlines()) == 3
