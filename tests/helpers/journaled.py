"""An engine that may crash, and searches on it with a journal."""

import asyncio
import json
import zlib

from tts_decode import gather
from tts_decode.completions.completion import Completion
from tts_decode.completions.decoder import TextDecoder
from tts_decode.records.strict_json import seal
from tts_decode.search import STRATEGIES, Journal, SearchRun, rebase, strategy


class Crash(BaseException):
    """The process dies."""


class Engine:
    """Texts that depend on prefix and seed alone, as those of a model do; answers come in mixed order."""

    def __init__(self, crash_after=None):
        self.asked = []
        self.crash_after = crash_after

    async def __call__(self, request):
        key = zlib.crc32(f"{request.seed} {request.prompt}".encode())
        for _ in range(key % 13):
            await asyncio.sleep(0)
        if self.crash_after is not None and len(self.asked) >= self.crash_after:
            raise Crash
        self.asked.append((request.prompt, request.seed))
        if request.prompt.count("\n") < 3:
            return Completion(f"step {key % 97}\n", "stop_string", (key % 97, 1), (-0.5, -0.25), (1.0, 2.0))
        return Completion(f"is {key % 10}.", "eos", (2, 3, 0), (-0.1, -0.2, 0.0), (1.0, 1.0, 0.0))


def search(path, *, body=rebase, resume=False, engine=None, prompt="Q: ", seen=None, **options):
    """One search with a journal (no path: without one), its result and its engine."""
    engine = engine or Engine()
    decoder = TextDecoder(engine)

    async def scorer(branches):
        if seen is not None:
            seen.extend(branch.text for branch in branches)
        return [len(branch.text) * 7 % 5 / 5 for branch in branches]

    async def run():
        root = await decoder.root(prompt)
        journal = None if path is None else Journal(path, resume=resume)
        try:
            return await body(SearchRun(root, journal=journal), **({"n": 5, "scorer": scorer} | options))
        finally:
            root.release()

    return decoder.run(run()), engine


def unregistered(body):
    """A strategy of one test only."""
    made = strategy("for this test")(body)
    del STRATEGIES[body.__name__]
    return made


@unregistered
async def by_arrival(run, *, n=5, scorer=None):
    """Votes are the texts of first steps in the order of their arrival."""
    arrived = {}

    async def first(branch):
        (step,) = await run.step([branch])
        arrived[step.text] = float(len(arrived))

    await gather(first(branch) for branch in run.fork(run.root, 12))
    return await run.result(votes=arrived)


def sealed(lines):
    """The lines with checksums that agree, as of somebody who means it."""
    made, checksum = [], 0
    for line in lines:
        record = json.loads(line)
        record.pop("crc32", None)
        text, checksum = seal(record, checksum)
        made.append(text.encode() + b"\n")
    return made
