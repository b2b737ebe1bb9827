"""State kept for one API key does not affect another."""

from serving import Served, make_chatty

KEYS = ("first-key-of-all", "second-key-of-all")
PROMPT = "The quick brown fox jumps over the lazy dog."


def test_each_key_has_its_own_texts(model, one_thread):
    served = Served(make_chatty(model), keys=KEYS)
    bodies = {"seed": 5, "max_tokens": 60}
    found = {}
    for key in KEYS:
        headers = {"authorization": f"Bearer {key}"}
        if key == KEYS[0]:
            first = served.post("/v1/completions", {"prompt": PROMPT, **bodies}, headers=headers).json()
        text = PROMPT + first["choices"][0]["text"]
        answer = served.post("/v1/completions", {"prompt": text, "max_tokens": 1}, headers=headers).json()
        found[key] = answer["usage"]["prompt_tokens"]
    own = len(PROMPT) + 60
    canonical = len(served.decoder.token_ids(PROMPT + first["choices"][0]["text"]))
    assert own != canonical  # the random model writes what is no text
    assert abs(found[KEYS[0]] - own) <= 16
    assert found[KEYS[1]] == canonical
    served.assert_empties()
    served.close()
