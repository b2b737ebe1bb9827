"""Searches of any strategy on a tiny model, and readers of their trees."""

from search_options import small_options
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.search import STRATEGIES, get_strategy

PROMPT = "What is 2 + 3?"
SAMPLING = SamplingParams(max_tokens=24, max_step_tokens=6, seed=5)
SCORED = [name for name in STRATEGIES if STRATEGIES[name].needs_scorer]


def search_decoder():
    model = tiny_model()
    model.config.max_position_embeddings = 4096  # a byte is a token, and prompts made of answers are long
    return TreeDecoder(model, byte_tokenizer(), kv_bytes=64 << 20, sampling=SAMPLING)


async def search(decoder, name, *, prompt=PROMPT, sampling=None, budget=None, **changes):
    root = await decoder.root(prompt, sampling, budget)
    try:
        return await get_strategy(name)(root, **(small_options(name) | changes))
    finally:
        root.release()


def run(decoder, name, **arguments):
    """One search; afterwards nothing of it is left in the decoder."""
    try:
        return decoder.run(search(decoder, name, **arguments))
    finally:
        assert decoder.stats().branches == 0
        assert decoder.stats().resident_bytes == 0


def levels(tree):
    """Nodes by depth, the prompt at depth 0, each level in order of id."""
    depth, found = {}, []
    for node in tree:
        depth[node.id] = 0 if node.parent < 0 else depth[node.parent] + 1
        if depth[node.id] == len(found):
            found.append([])
        found[depth[node.id]].append(node)
    return found


def children(tree, node):
    return [child for child in tree if child.parent == node.id]


def path(tree, node):
    while node >= 0:
        yield tree[node]
        node = tree[node].parent


def tokens_of(tree, node):
    """Tokens from the prompt to the end of a node, through nodes of which only a part was taken."""
    tokens, upto = [], None
    for step in path(tree, node):
        tokens[:0] = step.tokens[:upto]
        upto = step.at
    return tuple(tokens)
