"""The application in front of replicas, with replicas in this process: who gets what, deaths, ends."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import Message
from tts_decode.cluster import Identity
from tts_decode.replicas.balance import AHEAD, Balance
from tts_decode.replicas.beginnings import beginning_of
from tts_decode.replicas.exposition import merged
from tts_decode.replicas.front import Front
from tts_decode.serve.config import Limits

KEY = "a-key-for-the-test"
PROMPT = "The quick brown fox"
LIKE = Identity(
    tts_kernels="1",
    torch="2",
    transformers="5",
    python="3.11",
    model="Little float32",
    weights="12ab",
    tokenizer="34cd",
    kv_dtype="float32",
    device="cpu",
    isa="avx2",
)
UNLIKE = replace(LIKE, weights="ffff")


class FakeReplica:
    """Answers each request with its own number and the request's body; a stream waits to be let go.

    Attributes:
        told: the requests that came: scope and body. left: streams whose client left.
        identity: of its process.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.told: list[tuple[dict[str, Any], bytes]] = []
        self.left = 0
        self.identity = LIKE
        self.alive, self.death, self.go = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.alive.set()

    def die(self) -> None:
        self.alive.clear()
        self.death.set()

    def rise(self) -> None:
        self.death = asyncio.Event()
        self.alive.set()

    async def presence(self) -> AsyncGenerator[Identity, None]:
        await self.alive.wait()
        yield self.identity
        await self.death.wait()
        raise RuntimeError("the process has died")

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Message, None]:
        self.told.append((scope, body))
        path = scope["path"]
        if path == "/metrics":
            text = f'# HELP a_total A.\n# TYPE a_total counter\na_total{{path="x"}} {self.number + 1}.0\n'
            async for each in said(200, text.encode(), b"text/plain"):
                yield each
            return
        if path.startswith("/v1/tts/trees/"):
            mine = path.endswith(str(self.number))
            async for each in said(200 if mine else 404, b"%d" % self.number):
                yield each
            return
        if b"stream" not in body:
            async for each in said(200, b"%d" % self.number):
                yield each
            return
        try:
            headers = [(b"content-type", b"text/event-stream")]
            yield {"type": "http.response.start", "status": 200, "headers": headers}
            if b"late" not in body:
                yield {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
            await self.go.wait()
            yield {"type": "http.response.body", "body": b"data: 2\n\n", "more_body": False}
        except (GeneratorExit, asyncio.CancelledError):
            self.left += 1
            raise

    async def close(self) -> None:
        self.go.set()


async def said(status: int, body: bytes, media: bytes = b"application/json") -> AsyncGenerator[Message, None]:
    yield {"type": "http.response.start", "status": status, "headers": [(b"content-type", media)]}
    yield {"type": "http.response.body", "body": body, "more_body": False}


class Asked:
    """A request to the front under way: what came of it so far.

    Attributes:
        messages: of the answer. leave: set where the client leaves.
    """

    def __init__(
        self, front: Front, path: str, body: Any = None, *, method: str = "POST", key: str = ""
    ) -> None:
        self.messages: list[Message] = []
        self.leave = asyncio.Event()
        self._parts = [] if body is None else [json.dumps(body).encode()]
        headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {key}".encode())]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        self.task = asyncio.ensure_future(front(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._parts:
            return {"type": "http.request", "body": self._parts.pop(), "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    async def answer(self) -> tuple[int, bytes]:
        await asyncio.wait_for(self.task, 30)
        return self.messages[0]["status"], self.body


Test = Callable[[Front, list[FakeReplica]], Coroutine[Any, Any, None]]


def run(test: Test, count: int = 2, keys: tuple[str, ...] = (), limits: Limits | None = None) -> None:
    async def whole() -> None:
        replicas = [FakeReplica(number) for number in range(count)]
        front = Front(replicas, keys, limits or Limits())
        front.open()
        await front.complete()
        await test(front, replicas)
        for replica in replicas:
            replica.go.set()
        await front.close(0)

    asyncio.run(whole())


def served(front: Front) -> int:
    return sum(member.serves for member in front.members)


async def until(condition: Callable[[], Any]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(wait(), 30)


async def ask(front: Front, prompt: Any = PROMPT, **options: Any) -> tuple[int, bytes]:
    return await Asked(front, "/v1/completions", {"prompt": prompt}, **options).answer()


def test_one_beginning_stays_with_one_replica_and_others_spread() -> None:
    async def test(front: Front, replicas: list[FakeReplica]) -> None:
        shared = "s" * 600
        first = [await ask(front, shared + str(i)) for i in range(6)]
        assert len(set(first)) == 1
        assert first[0][0] == 200
        spread = {(await ask(front, str(i) * 300))[1] for i in range(6)}
        assert spread == {b"0", b"1"}
        assert await ask(front, shared) == first[0]
        bodies = [json.loads(body)["prompt"] for replica in replicas for _, body in replica.told]
        assert len(bodies) == 13

    run(test)


def test_a_replica_that_is_far_ahead_gives_its_prompts_to_others() -> None:
    balance = Balance(3, 8)
    held = [balance.chosen(PROMPT, range(3)) for _ in range(2 * AHEAD)]
    got = [each.__enter__() for each in held]
    assert len(set(got[: AHEAD + 1])) == 1
    assert set(got[: AHEAD + 1]) != set(got[AHEAD + 1 :])
    for each in held:
        each.__exit__(None, None, None)
    with balance.chosen("other", range(3)) as other:
        assert other == ({0, 1, 2} - set(got)).pop()
    with balance.chosen(PROMPT, [other]) as only:
        assert only == other


def test_a_death_is_forgotten_by_the_balance() -> None:
    balance = Balance(2, 8)
    with balance.chosen(PROMPT, range(2)) as first:
        balance.forget(first)
        with balance.chosen("x", range(2)) as second:
            assert second != first  # it was never chosen
    with balance.chosen("y", [second]), balance.chosen(PROMPT, range(2)) as third:
        assert third == first  # which is idle, and not because it held the prompt


@pytest.mark.parametrize("late", [True, False])
def test_a_replica_that_dies_ends_its_answers_with_an_error(late: bool) -> None:
    async def test(front: Front, replicas: list[FakeReplica]) -> None:
        how = {"late": True} if late else {}
        asked = Asked(front, "/v1/completions", {"prompt": PROMPT, "stream": True, **how})
        await until(lambda: replicas[0].told or replicas[1].told)
        if not late:
            await until(lambda: asked.body)
        dead = replicas[0] if replicas[0].told else replicas[1]
        dead.die()
        status, body = await asked.answer()
        assert status == (503 if late else 200)
        if not late:
            first, event, done, rest = body.split(b"\n\n")
            assert (first, done, rest) == (b"data: 1", b"data: [DONE]", b"")
            body = event.removeprefix(b"data: ")
        error = json.loads(body)["error"]
        assert error["code"] == "unavailable"
        assert error["message"] == "the replica that had this request died; send it again"
        other = b"%d" % (1 - dead.number)
        assert await ask(front) == (200, other)
        status, body = await Asked(front, "/health", method="GET").answer()
        assert (status, json.loads(body)) == (200, {"status": "ok", "replicas": 2, "serving": 1})
        dead.rise()
        await until(lambda: served(front) == 2)
        assert await ask(front) == (200, other)  # which holds the prompt now

    run(test)


def test_no_replica_is_up() -> None:
    async def test(front: Front, replicas: list[FakeReplica]) -> None:
        for replica in replicas:
            replica.die()
        await until(lambda: not served(front))
        looks = [Asked(front, path, method="GET").answer() for path in ("/health", "/metrics")]
        for answer in (ask(front), *looks):
            status, body = await answer
            assert status == 503
            assert json.loads(body)["error"]["message"] == "no replica is up; try again"

    run(test)


def test_replicas_that_differ_do_not_start() -> None:
    async def whole() -> None:
        replicas = [FakeReplica(number) for number in range(3)]
        replicas[2].identity = UNLIKE
        front = Front(replicas, (), Limits())
        front.open()
        told = await asyncio.wait_for(front.complete(), 30)
        assert told is not None
        assert re.match(r"replica 2 is not like replica [01], which has weights 12ab, there ffff: ", told)
        assert told.endswith("; put the same model on all nodes")
        await front.close(0)

    asyncio.run(whole())


def test_a_replica_that_differs_after_a_restart_waits_until_it_may_serve(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(front: Front, replicas: list[FakeReplica]) -> None:
        replicas[1].die()
        await until(lambda: served(front) == 1)
        replicas[1].identity = UNLIKE
        replicas[1].rise()
        await until(lambda: front.members[1].refused)
        for number in range(4):
            assert await ask(front, f"{number} {PROMPT}") == (200, b"0")
        await asyncio.sleep(0.5)  # it is asked again meanwhile, and told once
        assert caplog.text.count("replica 1 is not like replica 0") == 1
        replicas[0].die()  # now none serves, and nothing differs from it
        await until(lambda: front.members[1].serves)
        assert await ask(front) == (200, b"1")
        assert front.members[1].refused is None

    run(test)


def test_a_client_that_leaves_is_told_to_the_replica() -> None:
    async def test(front: Front, replicas: list[FakeReplica]) -> None:
        asked = Asked(front, "/v1/completions", {"prompt": PROMPT, "stream": True})
        await until(lambda: asked.body)
        asked.leave.set()
        await asyncio.wait_for(asked.task, 30)
        await until(lambda: sum(replica.left for replica in replicas) == 1)
        cancelled = Asked(front, "/v1/completions", {"prompt": PROMPT, "stream": True})
        await until(lambda: cancelled.body)
        cancelled.task.cancel()
        await until(lambda: sum(replica.left for replica in replicas) == 2)

    run(test)


def test_metrics_are_of_all_replicas() -> None:
    async def test(front: Front, replicas: list[FakeReplica]) -> None:
        status, body = await Asked(front, "/metrics", method="GET").answer()
        assert status == 200
        lines = body.decode().splitlines()
        assert lines.count("# TYPE a_total counter") == 1
        assert 'a_total{path="x",replica="0"} 1.0' in lines
        assert 'a_total{path="x",replica="1"} 2.0' in lines

    run(test)


def test_metrics_keep_what_they_are() -> None:
    """Histograms and gauges; a text that says nothing adds nothing."""
    text = (
        "# HELP s_seconds S.\n# TYPE s_seconds histogram\n"
        's_seconds_bucket{le="1.0"} 2.0\ns_seconds_bucket{le="+Inf"} 3.0\n'
        "s_seconds_count 3.0\ns_seconds_sum 4.5\n# HELP g G.\n# TYPE g gauge\ng 7.0\n"
    )
    found = merged({"0": text, "1": ""}).decode().splitlines()
    assert {"# TYPE s_seconds histogram", "# TYPE g gauge", 'g{replica="0"} 7.0'} <= set(found)
    assert 's_seconds_bucket{le="+Inf",replica="0"} 3.0' in found
    assert len(found) == 9


@pytest.mark.parametrize(("tree", "status"), [(0, 200), (1, 200), (2, 404)])
def test_a_tree_is_found_where_it_is(tree: int, status: int) -> None:
    async def test(front: Front, replicas: list[FakeReplica]) -> None:
        got = await Asked(front, f"/v1/tts/trees/{tree}", method="GET").answer()
        assert got == (status, b"%d" % (1 if tree == 2 else tree))

    run(test)


def test_a_body_is_read_with_a_key_alone_and_within_the_limit() -> None:
    async def test(front: Front, replicas: list[FakeReplica]) -> None:
        await ask(front)
        assert [body for replica in replicas for _, body in replica.told] == [b""]
        await ask(front, key=KEY)
        status, body = await ask(front, "x" * 200, key=KEY)
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
        assert sum(len(replica.told) for replica in replicas) == 2

    run(test, keys=(KEY,), limits=Limits(body_bytes=100))


def test_an_end_cancels_what_does_not_end_and_refuses_what_comes() -> None:
    async def test(front: Front, replicas: list[FakeReplica]) -> None:
        asked = Asked(front, "/v1/completions", {"prompt": PROMPT, "stream": True})
        await until(lambda: asked.body)
        closing = asyncio.ensure_future(front.close(0.1))
        await asyncio.sleep(0)
        status, body = await ask(front)
        assert (status, json.loads(body)["error"]["message"]) == (503, "the server is shutting down")
        assert (await asked.answer())[1].endswith(b"data: 2\n\n")
        await asyncio.wait_for(closing, 30)

    run(test)


@pytest.mark.parametrize(
    ("body", "beginning"),
    [
        ({"n": 2, "prompt": "text"}, "text"),
        ({"prompt": ["first", "second"]}, "first"),
        ({"prompt": [1, 22, 3]}, "1 22 3"),
        ({"prompt": [[4, 5], [6]]}, "4 5"),
        ({"prompt": None}, ""),
        ({"prompt": []}, ""),
        ({"messages": [{"role": "a", "content": "x"}, {"role": "b", "content": "y"}]}, "a\nx\nb\ny"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"x": 1}]}]}, "user\na"),
        ({"messages": [3]}, ""),
        ({"messages": "x"}, ""),
        ([1], ""),
        ({"prompt": "x" * 100_000}, "x" * 16_384),
    ],
)
def test_how_a_prompt_begins(body: Any, beginning: str) -> None:
    assert beginning_of(json.dumps(body).encode()) == beginning


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"prompt": NaN}'])
def test_what_is_no_body_begins_with_nothing(body: bytes) -> None:
    assert beginning_of(body) == ""
