"""R2-LLMs: Monte Carlo tree search whose steps are sampled with retrieved steps in the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer, most_similar, uct
from ..answers import Extract
from ..decisions import DecideBy
from ..outside import TextFunction, text_for
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .reference_library import TEMPLATE, ReferenceLibrary
from .tree_node import TreeNode, add_children, conclude, grow

if TYPE_CHECKING:
    from ...core.interfaces import Branch

WITH_TEMPLATES = "{retrieved}\n\n{question}"
WITH_STEP = "(What followed elsewhere: {retrieved})\n"


@strategy("Monte Carlo tree search with retrieval at the root and at every node")
async def r2_retrieval(
    run: SearchRun,
    *,
    num_simulations: int = 16,
    scorer: Scorer,
    num_children: int = 4,
    max_steps: int = 40,
    exploration: float = 1.0,
    library: ReferenceLibrary | None = None,
    retrieve: TextFunction | None = None,
    num_unaided: int = 0,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Runs simulations of `mcts` (UCT, down to an answer) that sample steps with retrieved text in view.

    Dou et al., "Enhancing Test-Time Scaling of Large Language Models with Hierarchical Retrieval-Augmented
    MCTS", arXiv 2507.05557 (R2-LLMs). Coarse level: the model writes an abstract template of the question,
    one line on its kind and method; solved problems with similar templates come before the question. Fine
    level: at each node, steps that followed similar ones in reference solutions are inserted before the next
    steps are sampled. A process reward model scores the steps.

    Args:
        num_simulations, num_children, max_steps, exploration, agg_strategy: as in `mcts`.
        decide_by, extract: as in `best_of_n`.
        scorer: values of partial answers, in [0, 1].
        library: the reference problems; `with_templates` writes their templates, once for all searches.
        retrieve: instead of a library: returns text for a query (a template, then at each node the last step,
            or the question), "" for nothing. An async function is awaited; another one runs in a thread. With
            neither, the step of the search's own tree whose words are most like the last one is shown, and
            nothing at the coarse level.
        num_unaided: number of a node's children sampled without retrieved text, so that the scorer can prefer
            them; one is if sampling with the text yields nothing.

    Text inserted at a node affects its next steps only. A fork takes the text and samples the step; the path
    then takes the step without the text, in one forward, and the fork is released. So paths share their KV as
    in `mcts`, and a scorer never sees what was retrieved.

    Departures. The authors' code is not public; prompts, the number of problems and steps shown, and showing
    the step that followed rather than the similar one are ours, as are `retrieve`, `num_unaided` and the
    search's own tree as a source.
    """
    at_least(1, num_simulations=num_simulations, num_children=num_children, max_steps=max_steps)
    at_least(0, num_unaided=num_unaided)
    run.refuse_constraint("r2_retrieval", "forces what it retrieved before a step")
    if library is not None and retrieve is not None:
        raise ValueError("retrieve: got a function beside a library, expected one of the two; leave one out")
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)

    def select(node: TreeNode) -> int:
        values = [child.value for child in node.children]
        visits = [child.visits + child.pending for child in node.children]
        bounds = uct(values, visits, node.visits + node.pending - 1, exploration)
        return max(range(len(bounds)), key=bounds.__getitem__)

    def elsewhere(node: int) -> str:
        """Returns the sampled step most like this node's, among those that its path did not take."""
        query, on_path = run.tree[node].text, set()
        while node >= 0:
            on_path.add(run.tree[node].text)
            node = run.tree[node].parent
        sampled = (step.text for step in run.tree if step.status != "prompt" and not step.forced)
        others = [text for text in sampled if text not in on_path]
        found = most_similar(query, others)
        return "" if found is None else others[found]

    async def found(query: str, in_library: Callable[[ReferenceLibrary, str], str]) -> str:
        async def look_up(query: str) -> str:  # not in a thread: it takes little time
            assert library is not None
            return in_library(library, query)

        return (await text_for(run, "retrieve", retrieve or look_up, query)).strip()

    async def hint(node: TreeNode, branch: Branch) -> str:
        if retrieve is None and library is None:
            return elsewhere(run.node(branch)).strip()
        query = run.question if node.parent is None else run.tree[run.node(branch)].text
        return await found(query, ReferenceLibrary.steps_like)

    async def unaided(branch: Branch) -> Branch | None:
        await run.step([branch])
        return branch

    async def aided(branch: Branch, text: str) -> Branch | None:
        """Returns the branch one step further, sampled with the text in view; None if nothing came."""
        (sight,) = run.fork(branch)
        await run.extend(sight, text)
        more = sight.length - branch.length
        (step,) = await run.step([sight], max_tokens=sight.sampling.max_tokens + more)
        reason = sight.finish_reason
        run.prune([sight])
        if not step.text:
            run.prune([branch])
            return None
        await run.extend(branch, step.text)
        if reason is not None:
            branch.finish(reason)
        return branch

    async def grow_one(node: TreeNode) -> tuple[TreeNode, list[Branch]]:
        assert node.branch is not None  # a leaf keeps its branch until it is expanded
        retrieved = await hint(node, node.branch)
        branches = run.fork(node.branch, num_children)
        if not retrieved:
            await run.step(branches)
            return node, branches
        text = WITH_STEP.format(retrieved=retrieved)
        grown = await gather(
            unaided(branch) if i < num_unaided else aided(branch, text) for i, branch in enumerate(branches)
        )
        children = [branch for branch in grown if branch is not None]
        if not children:
            children = run.fork(node.branch)
            await run.step(children)
        return node, children

    async def expand(nodes: Sequence[TreeNode]) -> None:
        await add_children(run, scorer, await gather(map(grow_one, nodes)), max_steps)

    start: Branch | None = None
    if retrieve is not None or library is not None:
        (template,) = await run.ask(TEMPLATE.format(question=run.question))
        retrieved = await found(template, ReferenceLibrary.problems_like)
        if retrieved:
            said = WITH_TEMPLATES.format(retrieved=retrieved, question=run.question)
            start = await run.prompt(said, question=run.question)
    root = TreeNode(start or run.fork(run.root)[0])
    await grow(run, root, num_simulations, select, expand)
    return await conclude(run, root, scorer)
