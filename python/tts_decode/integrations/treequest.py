"""treequest's algorithms over branches of a decoder of this process: the function that makes a child.

Imports nothing of treequest, which takes any function from a state to a state and a score. If it is
installed, it must be in a version that was tested (`TESTED` of `tts_decode.extras`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast
from weakref import WeakSet

from tts_kernels.checks import instance, shown

from ..core.naming import named
from ..core.params import SamplingParams
from ..core.prompts import Prompt
from ..core.running import gather
from ..core.state import BranchState
from ..decoding.branch import TreeBranch
from ..decoding.decoder import TreeDecoder
from ..decoding.releasing import release_all
from ..extras import require_tested
from ..rewards.scorer import Scorer, check_scorer, score_branches, scorer_name

require_tested("treequest")


class TreeState:
    """A node's state: a text, and the branch that holds its KV while the state lives.

    treequest copies its tree with each step; copying a state returns the same state. A pickled one keeps its
    tokens, which are computed again when a node below it is made.

    Attributes:
        text: after the prompt. finished: whether the text has ended. score: the scorer's.
    """

    def __init__(self, branch: TreeBranch, score: float) -> None:
        self.text, self.finished, self.score = branch.text, branch.finished, score
        self._branch: TreeBranch | None = branch
        self._saved: BranchState | None = None

    async def fork(self, decoder: TreeDecoder) -> TreeBranch:
        """Returns a branch that continues from here.

        Raises ValueError if it belongs to another decoder.
        """
        if self._branch is None:
            self._branch = await decoder.restore(cast(BranchState, self._saved))
        elif self._branch.decoder is not decoder:
            raise ValueError(
                f"parent: got {self!r} of another decoder, expected one of the generator's; pickle it, and "
                "what is loaded is computed here"
            )
        return self._branch.fork(1)[0]

    def release(self) -> None:
        """Gives up its KV; nodes below it keep what they share."""
        if self._branch is not None and not self._branch.released:
            self._branch.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> TreeState:
        return self

    def __getstate__(self) -> dict[str, Any]:
        saved = self._saved if self._branch is None else self._branch.snapshot()
        return {**self.__dict__, "_branch": None, "_saved": saved}

    def __repr__(self) -> str:
        return f"TreeState({self.text!r}, score={self.score:g})"


class TreeGenerator:
    """A `generate_fn`: `algorithm.step(tree, {"step": TreeGenerator(decoder, prompt, scorer)})`.

    A child is a fork of its parent's branch (the prompt's for the root) that has taken one more step. The
    prompt is computed once, and a child computes only the last token of its parent's text.

    Args:
        prompt: same as for `TreeDecoder.root`.
        scorer: an async function from branches to numbers from 0 to 1, such as `mean_probability()`.
        sampling: default: the decoder's. `stop` and `max_step_tokens` define a step.
        revision: a text appended to a finished parent, so that its child writes a new answer: for a chat
            model, the turns that ask for one. Without it the child of a finished state is the same text.
    """

    def __init__(
        self,
        decoder: TreeDecoder,
        prompt: Prompt,
        scorer: Scorer,
        *,
        sampling: SamplingParams | None = None,
        revision: str | None = None,
    ) -> None:
        self.decoder = instance("decoder", decoder, TreeDecoder)
        check_scorer(scorer)
        if sampling is not None:
            instance("sampling", sampling, SamplingParams)
        if revision is not None and not instance("revision", revision, str):
            raise ValueError("revision: got '', expected a text; leave it out for none")
        self._prompt, self._scorer, self._sampling = prompt, scorer, sampling
        self._revision = revision
        self._root: TreeBranch | None = None
        self._epoch = 0  # epoch of the model's weights when the prompt was computed
        self._states: WeakSet[TreeState] = WeakSet()

    def __call__(self, parent: TreeState | None) -> tuple[TreeState, float]:
        """Returns one child and its score. parent: None for the root."""
        _check_parent("parent", parent)
        return self.batch([parent])[0]

    def batch(self, parents: Sequence[TreeState | None]) -> list[tuple[TreeState, float]]:
        """Returns a child of each parent, decoded together.

        Pass `batch([trial.parent_state for trial in trials])` for the trials of `ask_batch`, and tell the
        results one by one.
        """
        return self.decoder.run(self.expand(parents))

    async def expand(self, parents: Sequence[TreeState | None]) -> list[tuple[TreeState, float]]:
        """Runs `batch` for code in an event loop.

        Raises:
            TypeError: a parent is neither None nor a state, or the scorer returned no numbers.
            ValueError: a score is not within 0 to 1, as treequest requires.
            BranchReleasedError: a parent was released.
        """
        if isinstance(parents, (TreeState, str)) or not isinstance(parents, Iterable):
            raise TypeError(
                f"parents: got {shown(parents)}, expected a list of states; pass [state], or [None]"
            )
        parents = list(parents)
        for index, parent in enumerate(parents):
            _check_parent(f"parents[{index}]", parent)
        root = await self._prompt_branch()
        held: list[TreeBranch] = []  # children that no state holds yet
        try:
            children = await gather(self._child(parent, root, held) for parent in parents)
            scores = await score_branches(self._scorer, children)
            for child, score in zip(children, scores, strict=True):
                if not 0 <= score <= 1:
                    raise ValueError(
                        f"scorer {scorer_name(self._scorer)}: got the score {score} for branch {child.id}, "
                        "expected a number from 0 to 1, as treequest needs it"
                    )
            states = [TreeState(child, score) for child, score in zip(children, scores, strict=True)]
            self._states.update(states)
            held.clear()
        finally:
            release_all(held)
        return list(zip(states, scores, strict=True))

    async def _prompt_branch(self) -> TreeBranch:
        """Returns the prompt's branch, computed once, and again if the model's weights changed."""
        epoch = self.decoder.weights_epoch
        if self._root is not None and self._epoch != epoch:
            self._root.release()
            self._root = None
        if self._root is None:
            self._epoch = epoch
            root = await self.decoder.root(self._prompt, self._sampling)
            if self._root is None:
                self._root = root
            else:  # another call was first
                root.release()
        return self._root

    async def _child(self, parent: TreeState | None, root: TreeBranch, held: list[TreeBranch]) -> TreeBranch:
        if parent is None:
            child = root.fork(1)[0]
        else:
            self._states.add(parent)  # it may come from an earlier process
            child = await parent.fork(self.decoder)
        held.append(child)
        if child.finished and self._revision is not None:
            with named("revision"):
                await child.extend(self._revision)
        await child.step()
        return child

    def release(self) -> None:
        """Frees the pages of the prompt and of all states at once.

        Without it, a state's pages are freed when Python collects the state.
        """
        for state in self._states:
            state.release()
        if self._root is not None:
            self._root.release()
            self._root = None


def _check_parent(name: str, parent: Any) -> None:
    if parent is not None and not isinstance(parent, TreeState):
        raise TypeError(
            f"{name}: got {shown(parent)}, expected the state of a node, or None for the root; pass "
            "trial.parent_state of a trial"
        )
