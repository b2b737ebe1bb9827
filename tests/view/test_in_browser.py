"""The page clicked through in Chromium."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import chromium
import pytest
from pages import HOSTILE, search
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from tts_decode.search import Candidate, KVSample, Node, SearchResult, SearchStats
from tts_decode.view import Problem, Shown

from benches.viewer_speed import generated_search

pytestmark = pytest.mark.browser
Opened = Callable[..., Any]


def text(driver: Any, css: str) -> str:
    found: str = driver.find_element(By.CSS_SELECTOR, css).text
    return found


def press(driver: Any, *keys: str) -> None:
    for key in keys:
        ActionChains(driver).send_keys(key).perform()


def click_node(driver: Any, node: int) -> None:
    """On the canvas, at the node's mark."""
    canvas = driver.find_element(By.ID, "tree")
    x, y = driver.execute_script("return treeView.placeOf(arguments[0])", node)
    size = canvas.size
    ActionChains(driver).move_to_element_with_offset(
        canvas, round(x - size["width"] / 2), round(y - size["height"] / 2)
    ).click().perform()


def selected(driver: Any) -> int:
    return int(driver.execute_script("return treeView.tree.selected.id"))


def test_it_opens_at_the_chosen_answer(opened: Opened, sheep: SearchResult) -> None:
    driver = opened(sheep)
    assert sheep.tree[0].question in text(driver, "#about")
    assert sheep.answer.strip() in text(driver, "#about")
    assert text(driver, "#details h2").startswith(f"Node {sheep.best.node}")
    assert "chosen answer" in text(driver, "#details h2")
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_a_click_tells_all_of_a_node(opened: Opened, sheep: SearchResult) -> None:
    driver = opened(sheep)
    node = next(n for n in sheep.tree if n.status == "pruned" and len(n.tokens) > 3)
    click_node(driver, node.id)
    assert text(driver, "#details h2") == f"Node {node.id}\npruned"
    assert f"{node.score:.3f}" in text(driver, "#details .figures")
    spans = driver.find_elements(By.CSS_SELECTOR, "#details .token")
    shown = [span.get_property("textContent") for span in spans]
    ends = (0, *node.ends)
    assert shown == [node.text[a:b] or "∅" for a, b in itertools.pairwise(ends)]
    assert f"log p {node.logprobs[2]:.2f}, entropy {node.entropies[2]:.2f} nats" in spans[2].get_attribute(
        "title"
    )
    ActionChains(driver).move_to_element(spans[2]).perform()
    assert f"id {node.tokens[2]}" in text(driver, "#details .told")
    assert sheep.tree[0].question in text(driver, "#details .path")


def test_a_hover_tells_the_text(opened: Opened, sheep: SearchResult) -> None:
    driver = opened(sheep)
    canvas = driver.find_element(By.ID, "tree")
    x, y = driver.execute_script("return treeView.placeOf(0)")
    ActionChains(driver).move_to_element_with_offset(
        canvas, round(x - canvas.size["width"] / 2), round(y - canvas.size["height"] / 2)
    ).perform()
    assert sheep.tree[0].question in text(driver, "#tip")


def test_arrows_walk_the_tree(opened: Opened, sheep: SearchResult) -> None:
    driver = opened(sheep)
    press(driver, Keys.HOME)
    assert selected(driver) == 0
    path = [sheep.best.node]
    while sheep.tree[path[-1]].parent >= 0:
        path.append(sheep.tree[path[-1]].parent)
    for node in path[-2::-1]:  # to the right along the way to the answer
        press(driver, Keys.ARROW_RIGHT)
        assert selected(driver) == node
    press(driver, Keys.ARROW_LEFT)
    assert selected(driver) == path[1]
    before = sheep.tree[path[1]]
    press(driver, Keys.ARROW_DOWN)
    other = selected(driver)
    press(driver, Keys.ARROW_UP)
    if other != before.id:
        assert selected(driver) == before.id
    press(driver, Keys.END)
    assert selected(driver) == sheep.best.node
    assert f"Node {sheep.best.node}, finished" in driver.find_element(By.ID, "status").get_property(
        "textContent"
    )


def test_the_text_is_searched(opened: Opened, sheep: SearchResult) -> None:
    driver = opened(sheep)
    expected = [node.id for node in sheep.tree if "THE ANSWER" in node.text.upper()]
    press(driver, "/", *"the answer")
    assert text(driver, "#found") == f"{len(expected)} matches"
    press(driver, Keys.ENTER)
    assert (selected(driver), text(driver, "#found")) == (expected[0], f"1 of {len(expected)}")
    ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    assert selected(driver) == expected[-1]
    press(driver, Keys.ESCAPE, "n")
    assert selected(driver) == expected[0]


def test_the_slider_shows_what_was_held(opened: Opened, sheep: SearchResult) -> None:
    driver = opened(sheep)
    sample = sheep.stats.memory[4]
    driver.execute_script("treeView.timeline.set(arguments[0])", sample.seconds)
    told = text(driver, "#moment")
    assert f"{sample.branches} branches" in told
    assert f"{sample.resident_bytes / 2**20:.1f} MiB" in told
    unshared = sample.logical_tokens * sheep.stats.page_bytes / sheep.stats.page_size
    assert f"unshared {unshared / 2**20:.1f} MiB" in told
    looks = driver.execute_script("return treeView.state.search.nodes.map((node) => node.look)")
    assert [look == 3 for look in looks] == [node.began > sample.seconds for node in sheep.tree]
    driver.find_element(By.ID, "slider").send_keys(Keys.HOME)
    assert text(driver, "#moment").startswith("0.00 s")
    press(driver, " ")
    assert driver.find_element(By.ID, "play").accessible_name == "Pause"
    press(driver, " ")
    assert driver.find_element(By.ID, "play").accessible_name == "Play"


def test_axes_and_colours(opened: Opened, sheep: SearchResult) -> None:
    driver = opened(sheep)
    leaf = sheep.best.node
    for axis, key, value in (
        ("time", "t", sheep.tree[leaf].ended),
        ("tokens", "l", sheep.tree[0].tokens and len(sheep.tree[0].tokens) + len(sheep.best.tokens)),
    ):
        press(driver, key)
        button = driver.find_element(By.CSS_SELECTOR, f"[data-axis={axis}]")
        assert button.get_attribute("aria-checked") == "true"
        assert driver.execute_script(f"return treeView.state.search.nodes[{leaf}].to") == pytest.approx(value)
    ends = set()
    for option in driver.find_elements(By.CSS_SELECTOR, "#colour option"):
        option.click()
        ends.add(text(driver, "#scale-ends"))
    assert len(ends) == 4


def test_problems_and_strategies_are_chosen(opened: Opened, sheep: SearchResult) -> None:
    other = search("forty", "Six times seven?")
    driver = opened(
        Shown("ets", sheep, Problem(0, "a", "Sheep?", "24", True)),
        Shown("ets", other, Problem(1, "b", "Six times seven?", "42", False)),
        Shown("ets", None, Problem(2, "c", "Why?", error="ValueError: no")),
        Shown("rebase", other, Problem(1, "b", "Six times seven?", "42", False)),
    )
    assert "✓ right, expected 24" in text(driver, "#about")
    options = driver.find_elements(By.CSS_SELECTOR, "#problem option")
    assert [option.text for option in options] == ["0 ✓ Sheep?", "1 ✗ Six times seven?", "2 failed"]
    options[1].click()
    assert "forty" in text(driver, "#about")
    assert "✗ wrong, expected 42" in text(driver, "#about")
    driver.find_elements(By.CSS_SELECTOR, "#problem option")[2].click()
    assert "The search failed: ValueError: no" in text(driver, "#about")
    driver.find_elements(By.CSS_SELECTOR, "#strategy option")[1].click()
    assert driver.execute_script("return treeView.state.entry.strategy") == "rebase"
    driver.find_element(By.ID, "next").click()
    assert driver.execute_script("return treeView.state.entry.index") == 0


@pytest.mark.parametrize("hostile", HOSTILE)
def test_texts_of_a_model_stay_texts(opened: Opened, hostile: str) -> None:
    driver = opened(Shown(hostile, search(hostile, hostile), Problem(0, hostile, hostile, hostile, False)))
    press(driver, Keys.HOME)
    tags = driver.execute_script(
        "return document.querySelectorAll('img, iframe, object, svg[onload], a, script:not([id])').length"
    )
    assert tags == 2  # the two scripts of the page
    shown = driver.find_element(By.CSS_SELECTOR, "#about .said").get_property("textContent")
    assert shown == "".join(
        f"\\u{{{ord(c):x}}}" if c in "\u2028\u2029\x00\x1b\u202e\ufeff" else c for c in hostile
    )


def test_the_policy_refuses_other_scripts(driver: Any, opened: Opened, sheep: SearchResult) -> None:
    opened(sheep)
    driver.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.ran = true'; "
        "document.body.append(script); const image = new Image(); image.src = 'http://127.0.0.1:9/x'"
    )
    refused = chromium.complaints(driver)  # taken out of the log, which must be empty at the end
    assert driver.execute_script("return window.ran") is None
    assert sum("Content Security Policy" in entry for entry in refused) == 2


def line_pages(nodes: list[Node], leaf: int, size: int) -> list[tuple[tuple[int, int], ...]]:
    """The pages of the line that ends in a leaf: of each the (node, offset) of its tokens."""
    places: list[tuple[int, int]] = []
    at: int | None = None
    while leaf >= 0:
        node = nodes[leaf]
        places[:0] = [(leaf, i) for i in range(len(node.tokens) if at is None else at)]
        leaf, at = node.parent, node.at
    return [tuple(places[i : i + size]) for i in range(0, len(places), size)]


def test_pages_are_shared_by_the_lines_that_have_their_tokens_in_common(opened: Opened) -> None:
    shape = [
        (-1, 21),
        (0, 9),
        (1, 40),
        (1, 3),
        (3, 16),
        (3, 20),
        (0, 11),
        (6, 0),
        (6, 5),
        (2, 17),
        (2, 17),
        (2, 30),
    ]
    nodes = [Node(i, parent, "x" * size, (7,) * size) for i, (parent, size) in enumerate(shape)]
    nodes[10].at, nodes[11].at = 37, 12
    nodes[0].status = "prompt"
    best = Candidate("x", (7,), 0.0, None, (), None, 9)
    driver = opened(SearchResult("s", best, (best,), tuple(nodes), SearchStats(1.0, 1, (), (), 16, 1024)))
    leaves = [n.id for n in nodes if all(other.parent != n.id for other in nodes)]
    lines = {leaf: line_pages(nodes, leaf, 16) for leaf in leaves}
    for leaf, pages in lines.items():
        expected = [sum(page in other for other in lines.values()) for page in pages]
        found = driver.execute_script("return treeView.pagesOf(arguments[0]).map((page) => page.lines)", leaf)
        assert found == expected, leaf


def test_files_that_tell_less(opened: Opened, sheep: SearchResult) -> None:
    """Of an engine without ids, probabilities, scores and pages, and of older versions."""
    bare = [
        replace(n, logprobs=(), entropies=(), ends=(), score=None, question="", began=0.0, ended=0.0)
        for n in sheep.tree
    ]
    driver = opened(replace(sheep, tree=tuple(bare), stats=SearchStats(0.0, 0)))
    assert "the file does not tell the size of a page" in text(driver, "#details")
    assert [o.text for o in driver.find_elements(By.CSS_SELECTOR, "#colour option")] == [
        "lines that share it"
    ]
    press(driver, "t", "[", Keys.HOME, Keys.ARROW_RIGHT)
    assert selected(driver) > 0
    no_pages = (KVSample(0.5, 2, 30, 0), KVSample(1.0, 3, 60, 0))
    driver = opened(replace(sheep, stats=SearchStats(1.0, 0, no_pages)))
    assert "60 tokens" in text(driver, "#moment")


def test_ten_thousand_nodes(opened: Opened) -> None:
    """Usable: each part answers. How fast is measured by `python -m benches.viewer_speed`."""
    driver = opened(generated_search(10_000))
    assert driver.execute_script("return treeView.state.search.nodes.length") == 10_000
    press(driver, Keys.HOME, Keys.ARROW_RIGHT, "t", "0", "+", "+", "]", "/", *"apples", Keys.ENTER)
    assert text(driver, "#found").startswith("1 of ")
    click_node(driver, selected(driver))


@pytest.mark.parametrize("width", [360, 390, 1024, 1400])
def test_nothing_is_wider_than_the_window(opened: Opened, sheep: SearchResult, width: int) -> None:
    driver = opened(sheep, width=width, height=844)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    for control in driver.find_elements(By.CSS_SELECTOR, "body > :not(dialog) :is(button, select, input)"):
        assert control.accessible_name, control.get_attribute("outerHTML")
