"""ETS keeps a small set of steps that score well and differ in meaning; the scorer is your own function.

python examples/ets_with_scorer.py
"""

from collections.abc import Sequence

from tts_decode import Branch, Budget, SamplingParams, TreeDecoder
from tts_decode.search import SearchResult, ets


async def mentions_numbers(branches: Sequence[Branch]) -> list[float]:
    """A scorer gives each branch a finite float: here the share of words that hold a digit."""
    scores = []
    for branch in branches:
        words = branch.text.split()
        scores.append(sum(any(c.isdigit() for c in word) for word in words) / max(len(words), 1))
    return scores


def main(question: str = "Tom has 12 eggs and uses 5. How many are left?", n: int = 4) -> SearchResult:
    sampling = SamplingParams(temperature=0.8, stop="\n", max_tokens=96, max_step_tokens=32)
    decoder = TreeDecoder.from_pretrained(sampling=sampling)

    async def search() -> SearchResult:
        prompt = [{"role": "user", "content": question}]
        root = await decoder.root(prompt, budget=Budget(max_tokens=400))  # of the whole search
        return await ets(root, n=n, scorer=mentions_numbers)

    result = decoder.run(search())
    print(result.answer)
    print(f"{result.stats.generated_tokens} tokens, {len(result.candidates)} candidates")
    return result


if __name__ == "__main__":
    main()
