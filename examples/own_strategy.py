"""A strategy in a few lines: sample until two answers agree, and at most `limit` times.

    python examples/own_strategy.py

With the decorator it runs like those of the package: with a budget, a journal, on any engine.
"""

from tts_decode import SamplingParams, TreeDecoder
from tts_decode.search import SearchResult, SearchRun, answers_of, strategy
from tts_decode.select import extract_answer, vote


@strategy("samples until two answers agree")
async def first_to_agree(run: SearchRun, *, limit: int = 8) -> SearchResult:
    while True:
        (branch,) = run.fork(run.root, 1)
        await run.complete(branch)
        candidate = run.end(branch)  # its KV pages are free again
        answers = await answers_of(run.candidates, extract_answer)  # 1/2 and 0.5 are one answer
        if answers[-1] in answers[:-1] or len(answers) == limit or run.over:  # over: the budget is used up
            return await run.result(candidate, vote(answers))


def main(question: str = "What is 3 + 4?") -> SearchResult:
    sampling = SamplingParams(temperature=0.7, max_tokens=32, seed=1)
    decoder = TreeDecoder.from_pretrained(sampling=sampling)

    async def search() -> SearchResult:
        root = await decoder.root([{"role": "user", "content": question}])
        return await first_to_agree(root)

    result = decoder.run(search())
    print(result.answer, result.votes)
    return result


if __name__ == "__main__":
    main()
