"""Text branches: biases and penalties that go to the engine, and parameters that no completion call has."""

import pytest
from scripted import scripted_decoder
from text_cases import PROMPT
from tts_decode import Choice, SamplingParams
from tts_decode.errors import UnsupportedByEngineError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_biases_go_to_the_engine_and_penalties_while_it_can_count():
    decoder = scripted_decoder(lambda prefix, k: ("word\n", "stop_string"))
    biased = SamplingParams(logit_bias={7: -100, 3: 2}, stop="\n")

    async def search():
        root = await decoder.root(PROMPT, biased)
        await root.step(frequency_penalty=0.5, presence_penalty=-0.5)
        for name in ("frequency_penalty", "presence_penalty"):  # a call counts its own tokens alone
            with pytest.raises(UnsupportedByEngineError, match=f"SamplingParams.{name} over several steps"):
                await root.step(**{name: 0.5})
        await root.step()

    decoder.run(search())
    first, second = (call.request for call in decoder.complete.calls)
    assert first.logit_bias == second.logit_bias == ((3, 2.0), (7, -100.0))
    assert (first.frequency_penalty, first.presence_penalty) == (0.5, -0.5)
    assert (second.frequency_penalty, second.presence_penalty) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_logprobs", 3),
        ("self_certainty", True),
        ("constraint", Choice(["a"])),
        ("suppress_token_ids", (1,)),
        ("stop_token_ids", (1,)),
    ],
)
def test_parameters_that_no_completion_call_has_are_refused_by_name(name, value):
    decoder = scripted_decoder(lambda prefix, k: ("word\n", "stop_string"))

    async def search():
        root = await decoder.root(PROMPT, SamplingParams(stop="\n", **{name: value}))
        with pytest.raises(UnsupportedByEngineError, match=f"SamplingParams.{name}: leave it at its default"):
            await root.step()

    decoder.run(search())
    assert decoder.complete.calls == []
