"""Beam search over a server that speaks OpenAI's completions API. Needs the base installation only.

vllm serve Qwen/Qwen2.5-1.5B-Instruct
python examples/openai_endpoint.py http://localhost:8000/v1 Qwen/Qwen2.5-1.5B-Instruct
"""

import sys

from tts_decode import OpenAICompletions, SamplingParams, TextDecoder
from tts_decode.rewards import verifier
from tts_decode.search import SearchResult, beam_search

PROMPT = "Question: What is 12 - 5? Think step by step, a line each.\nAnswer:\n"


def main(url: str, model: str) -> SearchResult:
    sampling = SamplingParams(temperature=0.8, stop="\n", max_tokens=128, max_step_tokens=48)
    decoder = TextDecoder(OpenAICompletions(url, model), sampling=sampling, max_concurrency=16)

    async def search() -> SearchResult:
        root = await decoder.root(PROMPT)
        return await beam_search(root, n=4, beam_width=2, scorer=verifier(lambda text: "7" in text))

    result = decoder.run(search())
    print(result.best.text)
    return result


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} URL MODEL")
    main(*sys.argv[1:])
