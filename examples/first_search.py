"""Eight answers to one question share the prompt's KV; the most frequent one wins.

python examples/first_search.py "What is 3 + 4?"
"""

import sys

from tts_decode import SamplingParams, TreeDecoder
from tts_decode.search import SearchResult, render_tree, self_consistency


def main(question: str = "What is 3 + 4?", n: int = 8) -> SearchResult:
    sampling = SamplingParams(temperature=0.7, max_tokens=32, seed=1)
    decoder = TreeDecoder.from_pretrained(sampling=sampling)  # SmolLM2-135M-Instruct, offline

    async def search() -> SearchResult:
        root = await decoder.root([{"role": "user", "content": question}])
        return await self_consistency(root, n=n)

    result = decoder.run(search())
    print(result.answer)
    print(render_tree(result.tree, best=result.best.node))
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
