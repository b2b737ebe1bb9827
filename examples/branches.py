"""A decoder inside code of your own: branches fork, step, take forced text and roll back, like any object.

python examples/branches.py
"""

from tts_decode import SamplingParams, TreeDecoder, gather


def main(question: str = "Name one animal that can fly.") -> list[str]:
    sampling = SamplingParams(temperature=0.9, max_tokens=24)
    decoder = TreeDecoder.from_pretrained(sampling=sampling)

    async def best_opening() -> list[str]:
        root = await decoder.root([{"role": "user", "content": question}])  # the prompt is computed once
        openings = ["A bird", "An airplane", "A stone"]
        branches = root.fork(len(openings))  # no KV is copied
        forced = await gather(b.extend(text) for b, text in zip(branches, openings, strict=True))
        likely = [float(logprobs.mean()) for logprobs in forced]  # nats a token
        best = branches[likely.index(max(likely))]
        for branch in branches:
            if branch is not best:
                branch.release()  # pages return at once

        start = best.length
        await best.step(max_step_tokens=8)
        first = best.text
        best.truncate(start)  # undone, and tried again with other random numbers
        await best.step(max_step_tokens=8, seed=7)
        second = best.text
        best.release()
        root.release()
        return [first, second]

    texts = decoder.run(best_opening())
    for text in texts:
        print(text)
    print(f"{decoder.stats().resident_bytes} bytes of KV are still held")
    return texts


if __name__ == "__main__":
    main()
