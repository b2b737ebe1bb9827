"""TreeCache after calls that ended in the middle, and between threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from tree_caches import cache_of, generate, longer, prompts

from tts_kernels.integrations.transformers import TreeCache, UnsupportedError, register

pytestmark = pytest.mark.usefixtures("one_thread")
register()


def raising(result: Callable[[Tensor, Any], Any], error: type[BaseException]) -> Callable[..., Any]:
    """A logits processor, or a stopping criterion, that raises in its fifth call."""
    calls = []

    def call(ids: Tensor, scores: Any, **_: Any) -> Any:
        calls.append(ids)
        if len(calls) == 5:
            raise error
        return result(ids, scores)

    return call


HOOKS: dict[str, Callable[[Tensor, Any], Any]] = {
    "logits_processor": lambda _, scores: scores,
    "stopping_criteria": lambda ids, _: torch.zeros(len(ids), dtype=torch.bool),
}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("hook", HOOKS)
def test_an_exception_between_forwards(
    own: PreTrainedModel, tree: PreTrainedModel, hook: str, error: type[BaseException]
) -> None:
    ids, mask = prompts(30, 4)
    cache = cache_of(tree)
    with pytest.raises(error):
        generate(tree, ids, mask, cache, **{hook: [raising(HOOKS[hook], error)]})
    assert (cache.get_seq_length(), cache.use().row_tokens) == (34, 34 + 2 * 4)
    begun = generate(own, ids, mask)[:, :35]
    assert torch.equal(cache.tokens(), begun[:, :34].masked_fill(longer(mask, begun)[:, :34] == 0, -1))
    other = begun.clone()
    other[1, 33] = (other[1, 33] + 1) % 256
    with pytest.raises(UnsupportedError, match=r"^input_ids: .* in column 33 of row 1.*cache\.crop\(33 - "):
        generate(tree, other, longer(mask, begun), cache)
    expected = generate(own, begun, longer(mask, begun))
    assert torch.equal(generate(tree, begun, longer(mask, begun), cache), expected)


LOOKS: dict[str, Callable[[TreeCache], Any]] = {
    "batch_size": lambda cache: cache.batch_size,
    "branches": lambda cache: cache.branches,
    "use": lambda cache: (cache.use().pages, cache.use().tokens, cache.use().row_tokens),
    "tree": lambda cache: cache.tree.stats().logical_tokens if cache.tree else 0,
    "tokens": lambda cache: cache.get_seq_length(),
}


def interrupt(model: PreTrainedModel, call: Callable[[], Any]) -> None:
    """The call, interrupted between the second layer's attention and the third's."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.model.layers[1].mlp.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        call()
    hook.remove()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("held", [0, 20])
def test_an_interrupted_forward_is_not_seen(tree: PreTrainedModel, look: str, held: int) -> None:
    ids, mask = prompts(30, 14)
    cache = cache_of(tree)
    with torch.no_grad():
        if held:
            cache.prefill(tree, ids[:, : held + 1], mask[:, : held + 1])
        before = LOOKS[look](cache)
        interrupt(tree, lambda: generate(tree, ids, mask, cache))
    assert repr(cache) == "TreeCache(2 rows in a forward, or in one that was interrupted)"
    assert LOOKS[look](cache) == before


def test_prefill_after_an_interrupted_forward(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    ids, mask = prompts(30, 14)
    cache = cache_of(tree)
    interrupt(tree, lambda: cache.prefill(tree, ids, mask))
    cache.prefill(tree, ids, mask, copies=3)
    assert torch.equal(generate(tree, ids, mask, cache, num_beams=3), generate(own, ids, mask, num_beams=3))


def test_the_cache_inside_a_forward(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """Its repr may be asked for there; whatever else is ends the forward, with the reason."""
    ids, mask = prompts(30)
    cache = cache_of(tree)
    hook = tree.model.layers[0].register_forward_hook(lambda *_: repr(cache) and None)
    assert torch.equal(generate(tree, ids, mask, cache), generate(own, ids, mask))
    hook.remove()
    cache.reset()
    tree.model.layers[0].register_forward_hook(lambda *_: cache.use() and None)
    with pytest.raises(UnsupportedError, match=r"layer: got 1, expected 0.*not looked at or changed"):
        generate(tree, ids, mask, cache)


def test_forwards_of_two_threads(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """The second begins while the first is between two layers."""
    ids, mask = prompts(30, 4)
    cache = cache_of(tree)
    results: list[Any] = []

    def other(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: results.append(generate(tree, ids, mask, cache)))
            thread.start()
            while not begun.wait(0.01) and thread.is_alive():
                pass
            threads.append(thread)
        else:
            begun.set()
            gone.wait(60)

    begun, gone, threads = threading.Event(), threading.Event(), []
    hook = tree.model.layers[0].mlp.register_forward_pre_hook(other)
    with pytest.raises(UnsupportedError, match=r"forwards of two threads at once.*for each thread"):
        generate(tree, ids, mask, cache)
    hook.remove()
    gone.set()
    threads[0].join()
    assert torch.equal(results[0], generate(own, ids, mask))


def test_a_cache_for_each_thread(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    ids, mask = prompts(30, 4)
    results: list[Tensor] = []
    work = [
        threading.Thread(target=lambda: results.append(generate(tree, ids, mask, cache_of(tree))))
        for _ in range(3)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    expected = generate(own, ids, mask)
    assert [torch.equal(result, expected) for result in results] == [True] * 3
