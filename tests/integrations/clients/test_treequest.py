"""treequest's algorithms, unmodified, over branches: what a child computes, its text, copies, and pages.

Texts have to be those of transformers, and forwards are counted by the decoder.
"""

from __future__ import annotations

import copy
import gc
import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from needed import needs
from primitives import make
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.rewards import mean_probability

needs("treequest")

import treequest
from tts_decode.integrations.treequest import TreeGenerator, TreeState

PROMPT = "The prompt has more than one page of tokens."
STEP = 8  # tokens of a child
DRAWN = SamplingParams(max_tokens=96, max_step_tokens=STEP)
GREEDY = SamplingParams(temperature=0, max_tokens=96, max_step_tokens=STEP)


def algorithm(name: str) -> Any:
    random.seed(0)
    try:
        return getattr(treequest, name)()
    except ImportError as missing:  # ABMCTSM needs PyMC
        pytest.skip(str(missing).splitlines()[0])


@pytest.fixture
def empty_decoder(model: Any) -> Iterator[TreeDecoder]:
    """A decoder whose pages are all back when the test's trees are collected."""
    decoder = make(model)
    yield decoder
    gc.collect()
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)


def greedy(model: Any, decoder: TreeDecoder, tokens: int) -> str:
    """Returns transformers' continuation of the prompt."""
    ids = torch.tensor([decoder.prompt_ids(PROMPT)])
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, **options)
    return decoder.tokenizer.decode(out[0, ids.shape[1] :])


def nodes(tree: Any) -> list[Any]:
    """All but the root."""
    return [node for node in tree.tree.get_nodes() if node.parent is not None]


@pytest.mark.parametrize("name", ["StandardMCTS", "ABMCTSA", "ABMCTSM"])
def test_a_child_computes_only_the_last_token_of_its_parent(name: str, empty_decoder: TreeDecoder) -> None:
    search = algorithm(name)
    generate = TreeGenerator(empty_decoder, PROMPT, mean_probability(), sampling=DRAWN)
    tree = search.init_tree()
    for _ in range(12):
        tree = search.step(tree, {"step": generate})
    found = nodes(tree)
    assert len(found) == 12
    first = sum(node.parent.state is None for node in found)
    assert 0 < first < 12
    # Of a child's tokens the last is left to its children; a child of the root has none to take over.
    expected = len(empty_decoder.prompt_ids(PROMPT)) + 12 * STEP - first
    assert empty_decoder.stats().forward_tokens == expected
    for node in found:
        above = "" if node.parent.state is None else node.parent.state.text
        assert node.state.text.startswith(above.rstrip("\ufffd"))
        assert node.score == node.state.score
    assert len({node.state.text for node in found}) == 12
    generate.release()
    assert empty_decoder.stats().resident_bytes == 0


def test_greedy_texts_are_those_of_transformers(model: Any, empty_decoder: TreeDecoder) -> None:
    generate = TreeGenerator(empty_decoder, PROMPT, mean_probability(), sampling=GREEDY)
    state: TreeState | None = None
    for depth in (1, 2, 3):
        state, _ = generate(state)
        assert state.text == greedy(model, empty_decoder, depth * STEP)
    generate.release()


def test_pages_go_with_the_tree(empty_decoder: TreeDecoder) -> None:
    search = algorithm("StandardMCTS")
    generate = TreeGenerator(empty_decoder, PROMPT, mean_probability(), sampling=DRAWN)
    tree = search.init_tree()
    for _ in range(4):
        tree = search.step(tree, {"step": generate})
    assert empty_decoder.stats().branches == 5  # the prompt's and four states'
    del tree
    gc.collect()
    assert empty_decoder.stats().branches == 1
    assert generate(None)[0].text  # the prompt is still there
    del generate


def test_a_copy_of_a_tree_has_the_same_states(empty_decoder: TreeDecoder) -> None:
    search = algorithm("ABMCTSA")
    generate = TreeGenerator(empty_decoder, PROMPT, mean_probability(), sampling=DRAWN)
    tree = search.step(search.init_tree(), {"step": generate})
    before = empty_decoder.stats().branches
    copied = copy.deepcopy(tree)
    assert empty_decoder.stats().branches == before
    assert [node.state for node in nodes(copied)] == [node.state for node in nodes(tree)]
    generate.release()


@pytest.mark.parametrize("name", ["StandardMCTS", "ABMCTSA"])
def test_a_pickled_tree_goes_on_in_another_decoder(name: str, model: Any, empty_decoder: TreeDecoder) -> None:
    search = algorithm(name)
    generate = TreeGenerator(empty_decoder, PROMPT, mean_probability(), sampling=GREEDY)
    tree = search.init_tree()
    for _ in range(2):
        tree = search.step(tree, {"step": generate})
    saved = pickle.dumps(tree)
    generate.release()
    other = make(model)
    again = TreeGenerator(other, PROMPT, mean_probability(), sampling=GREEDY)
    tree = pickle.loads(pickle.dumps(pickle.loads(saved)))  # what was never used is saved again
    parent = next(node.state for node in nodes(tree) if node.parent.state is None)
    assert repr(parent).startswith("TreeState(")
    child, _ = again(parent)
    assert child.text == greedy(model, other, 2 * STEP)
    for _ in range(3):
        tree = search.step(tree, {"step": again})
    assert len(nodes(tree)) == 5
    again.release()
    assert other.stats().resident_bytes == 0


@pytest.mark.parametrize("name", ["StandardMCTS", "ABMCTSA", "ABMCTSM"])
def test_a_batch_of_trials_is_decoded_together(name: str, empty_decoder: TreeDecoder) -> None:
    search = algorithm(name)
    generate = TreeGenerator(empty_decoder, PROMPT, mean_probability(), sampling=DRAWN)
    tree = search.init_tree()
    for _ in range(3):
        before = empty_decoder.stats().steps
        tree, trials = search.ask_batch(tree, 4, ["step"])
        results = generate.batch([trial.parent_state for trial in trials])
        assert empty_decoder.stats().steps - before <= STEP + 1
        for trial, result in zip(trials, results, strict=True):
            tree = search.tell(tree, trial.trial_id, result)
    assert len(treequest.top_k(tree, search, k=2)) == 2
    generate.release()


@pytest.mark.parametrize("score", [-0.1, 1.5])
def test_a_score_that_treequest_cannot_take_is_refused(score: float, empty_decoder: TreeDecoder) -> None:
    async def wrong(branches: Any) -> list[float]:
        return [score for _ in branches]

    generate = TreeGenerator(empty_decoder, PROMPT, wrong, sampling=DRAWN)
    with pytest.raises(ValueError, match=r"^scorer wrong: got the score .*, expected a number from 0 to 1"):
        generate(None)
    generate.release()


def test_a_revision_goes_on_behind_a_finished_text(empty_decoder: TreeDecoder) -> None:
    brief = SamplingParams(temperature=0, max_tokens=4, max_step_tokens=STEP)
    plain = TreeGenerator(empty_decoder, PROMPT, mean_probability(), sampling=brief)
    state, _ = plain(None)
    assert state.finished
    assert plain(state)[0].text == state.text
    revised = TreeGenerator(empty_decoder, PROMPT, mean_probability(), sampling=brief, revision=" Again: ")
    child, _ = revised(state)
    assert child.text.startswith(state.text.rstrip("\ufffd"))
    assert " Again: " in child.text
    plain.release()
    revised.release()
