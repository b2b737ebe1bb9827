"""Keys, names of hosts, and what answers and logs do not say."""

import logging
import math
from dataclasses import fields

import pytest
from tts_decode.serve import generation
from tts_decode.serve.config import Limits
from tts_decode.serve.guard import is_local
from tts_decode.serve.keys import KeyCheck, read_keys
from tts_decode.serve.run import LogFormatter, is_loopback

KEY, OTHER = "secret-key-number-1", "secret-key-number-2"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer wrong-key", 401),
        (f"Basic {KEY}", 401),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY[:-1]}", 401),
        ("Bearer \xe9\xe9", 401),
        (f"Bearer {KEY}", 200),
        (f"bearer {OTHER}", 200),
    ],
)
def test_a_request_needs_a_key_where_there_are_any(serve, header, status):
    served = serve(keys=(KEY, OTHER))
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/completions")):
        body = {"json": {"prompt": "x", "max_tokens": 1}} if method == "POST" else {}
        answer = served.http.request(method, path, headers=headers, **body)
        assert answer.status_code == status
        if status == 401:
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert KEY not in answer.text
    assert served.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("LOCALHOST.", True),
        ("127.0.0.1:8000", True),
        ("127.1.2.3", True),
        ("[::1]:8000", True),
        ("[::1]", True),
        ("", False),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.0.7:8000", False),
    ],
)
def test_names_of_this_machine(host, local):
    assert is_local(host) == local


def test_without_keys_another_host_is_refused(serve):
    served = serve()
    answer = served.http.get("/v1/models", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
    open_to_all = serve(loopback=False)
    assert open_to_all.http.get("/v1/models", headers={"Host": "my.example"}).status_code == 200


def test_a_failure_tells_the_client_nothing_of_the_inside(serve, monkeypatch, caplog):
    async def fails(*arguments):
        raise RuntimeError("at /home/me/model.bin")

    served = serve()
    monkeypatch.setattr("tts_decode.serve.app.generate", fails)
    with caplog.at_level(logging.ERROR, "tts_decode"):
        answer = served.post("/v1/completions", {"prompt": "x"})
        stream = served.post("/v1/completions", {"prompt": "x", "stream": True})
    for told in (answer, stream):
        assert told.status_code == 500
        assert "/home" not in told.text
        assert "RuntimeError" not in told.text
    assert "at /home/me/model.bin" in caplog.text
    monkeypatch.setattr("tts_decode.serve.app.generate", generation.generate)
    assert served.complete("x", max_tokens=2)


def test_texts_of_requests_are_not_logged(served, caplog):
    caplog.set_level(logging.WARNING, "httpx")  # of the test's own client
    with caplog.at_level(logging.INFO, "tts_decode"):
        served.complete("a very private text", max_tokens=2)
        served.http.get("/v1/no%1b%5b31mpath?key=private")
    assert "POST /v1/completions 200" in caplog.text
    assert "private" not in caplog.text
    assert "\x1b" not in caplog.text


def test_lines_of_the_log_hide_keys_and_control_characters():
    record = logging.LogRecord("x", logging.INFO, "", 0, f"with {KEY} and \x1b[31m", (), None)
    line = LogFormatter([KEY]).format(record)
    assert KEY not in line
    assert "\x1b" not in line


# -- keys


def test_keys_come_from_a_file_and_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n\n{OTHER}\n")
    assert read_keys(file, {}) == (KEY, OTHER)
    assert read_keys(None, {"TTS_DECODE_API_KEYS": f"{OTHER}, {KEY}"}) == (OTHER, KEY)
    assert read_keys(None, {}) == ()


@pytest.mark.parametrize("content", ["", "\n", "short", "with a blank", "key-\xe9\xe9\xe9\xe9"])
def test_files_without_usable_keys_are_refused(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="expected"):
        read_keys(file, {})
    with pytest.raises(ValueError, match="cannot be read"):
        read_keys(tmp_path / "nothing", {})


@pytest.mark.parametrize("value", ["", " , ", ","])
def test_a_variable_without_keys_opens_no_server(value):
    with pytest.raises(ValueError, match="TTS_DECODE_API_KEYS: holds no key"):
        read_keys(None, {"TTS_DECODE_API_KEYS": value})


def test_no_keys_let_nothing_in():
    assert not KeyCheck([])("Bearer ")
    assert not KeyCheck([]).asks


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("a.b", False),
    ],
)
def test_addresses_of_this_machine(host, loopback):
    assert is_loopback(host) == loopback


@pytest.mark.parametrize("value", [-1, True, "x", math.nan, math.inf, 10**20, 10**1000])
@pytest.mark.parametrize("limit", [limit.name for limit in fields(Limits)])
def test_limits_have_ranges(limit, value):
    with pytest.raises(ValueError, match=f"^{limit}: got .*, expected an? [a-z]+ from "):
        Limits(**{limit: value})


def test_limits_are_not_left_out_where_they_are_needed():
    with pytest.raises(ValueError, match=r"^choices: got None"):
        Limits(choices=None)
    with pytest.raises(ValueError, match=r"^sequences: got 2\.5, expected an integer"):
        Limits(sequences=2.5)
    with pytest.raises(ValueError, match=r"^client_sequences: got 9, expected at most 8"):
        Limits(sequences=8, client_sequences=9)
