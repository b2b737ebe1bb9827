"""The explored tree as text."""

import pytest
from tts_decode.search import Node, render_tree


def node(index, parent, text, tokens, score, status):
    return Node(index, parent, text, (0,) * tokens, score=score, status=status)


NODES = [
    node(0, -1, "What is\n2 + 3?", 7, None, "prompt"),
    node(1, 0, "First, ", 2, 0.5, "kept"),
    node(2, 0, "Hm", 1, 0.125, "pruned"),
    node(3, 1, "we add", 2, 0.75, "kept"),
    node(4, 3, " to 5", 2, 0.9, "finished"),
    node(5, 3, " to é", 2, 0.25, "open"),
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
    nodes = [node(0, -1, "word " * 50, 50, None, "prompt")]
    (line,) = render_tree(nodes, width=40).splitlines()
    assert len(line) == 40
    assert line.endswith("...")
    with pytest.raises(ValueError, match="width: got 5"):
        render_tree(nodes, width=5)


def test_a_deep_tree_needs_no_recursion():
    nodes = [node(i, i - 1, "a", 1, 0.0, "kept") for i in range(5000)]
    nodes += [node(5000, 4999, "b", 1, 0.0, "finished"), node(5001, 4999, "c", 1, 0.0, "pruned")]
    assert len(render_tree(nodes).splitlines()) == 3


def test_a_node_below_a_part_of_another_says_so():
    nodes = [node(0, -1, "Go", 1, None, "prompt"), node(1, 0, "one two", 2, None, "kept")]
    nodes += [Node(2, 1, " three", (0,), at=1, status="finished")]
    assert render_tree(nodes).splitlines() == ["[1] Go", "└─ [2] one two", "   └─ # ^1 [1] three"]


def test_a_prompt_is_shown_by_its_question():
    chat = "<|system|>You are a helpful assistant.<|user|>What is 2 + 3?<|assistant|>"
    nodes = [
        Node(0, -1, chat, (1,) * 20, status="prompt", question="What is 2 + 3?"),
        node(1, 0, "5", 1, None, "finished"),
    ]
    assert render_tree(nodes).splitlines() == ["[20] What is 2 + 3?", "└─ # [1] 5"]
