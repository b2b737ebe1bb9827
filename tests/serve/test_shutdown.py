"""Requests that come while the engine ends: 503, and nothing is left of them."""

import asyncio

import pytest
from tts_decode.serve.engine import EngineThread
from tts_decode.serve.errors import APIError

BODIES = {
    "whole": {"prompt": "The quick", "n": 3},
    "stream": {"prompt": "The quick", "n": 3, "stream": True},
    "search": {"prompt": "The quick", "max_tokens": 8, "tts": {"strategy": "best_of_n", "n": 2}},
}


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", BODIES)
def test_a_request_that_the_engine_does_not_take_leaves_nothing(served, kind):
    served.server.desk.engine.close()
    answer = served.post("/v1/completions", BODIES[kind])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert (served.server.admission.running, served.server.bodies.held) == (0, 0)
    served.assert_ends()


def test_metrics_of_a_server_that_ends(served):
    served.server.desk.engine.close()
    answer = served.http.get("/metrics")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert served.http.get("/health").status_code == 503
    served.assert_ends()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_closed_engine_takes_nothing_and_cancels_what_it_took():
    engine = EngineThread()
    taken = [engine.submit(asyncio.sleep(60)) for _ in range(8)]
    engine.close()
    engine.close()
    assert all(future.cancelled() for future in taken)
    with pytest.raises(APIError, match="shutting down") as caught:
        engine.submit(asyncio.sleep(0))
    assert caught.value.status == 503
    assert not engine.alive
