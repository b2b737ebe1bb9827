"""Files of records: what was written is read again, damage is found, and two never write at once."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from file_sizes import files_of_at_most
from hypothesis import given, settings
from hypothesis import strategies as st
from tts_decode.records.record_file import RecordFile


class Refused(ValueError):  # noqa: N818 (of a kind that the file itself catches)
    pass


def opened(path: Path, *, resume: bool = True, version: int = 2) -> RecordFile:
    return RecordFile(path, "tests/records", version, resume=resume, error=Refused)


def read(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    file = opened(path)
    file.close()
    return file.header, file.records


RECORDS = [{"n": n, "text": "step é\n" * (n % 3), "numbers": [n / 7, -1e-9, None]} for n in range(12)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with a header and records."""
    file = opened(tmp_path / "a.jsonl")
    for record in ({"made": "by the test"}, *RECORDS):
        file.write(record)
    file.close()
    return file.path


def test_each_line_is_json_and_what_was_written_is_read(path: Path) -> None:
    header, *lines = map(json.loads, path.read_text().split("\n")[:-1])
    assert (header["schema"], header["version"], header["made"]) == ("tests/records", 2, "by the test")
    assert [{k: v for k, v in line.items() if k != "crc32"} for line in lines] == RECORDS
    so_far = ""
    for line in (header, *lines):
        checksum = line.pop("crc32")
        so_far += json.dumps(line, separators=(",", ":"))
        assert checksum == f"{zlib.crc32(so_far.encode()):08x}"
    assert read(path)[1] == RECORDS
    file = opened(path)
    file.write({"more": 1})
    file.close()
    assert read(path)[1] == [*RECORDS, {"more": 1}]
    file = opened(path, resume=False)
    file.close()
    assert path.read_bytes() == b""


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.sample(range(len(content) + 1), 2))
    return content[:first] + content[last:]


def inserted(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.choice([b"\n", b"\0", b"{}", b"\xff\n", b'{"n":1}\n']) + content[place:]


def overwritten(content: bytes, rng: random.Random) -> bytes:
    """A block of zeros, as a file system leaves it after a crash, or of another place's bytes."""
    place, length = rng.randrange(len(content)), rng.randrange(1, 200)
    other = rng.randrange(len(content))
    block = rng.choice([bytes(length), content[other : other + length]])
    return content[:place] + block + content[place + length :]


def lines_moved(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    i, j = rng.sample(range(len(lines)), 2)
    kind = rng.randrange(3)
    if kind == 0:
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == 1:
        lines.insert(i, lines[j])
    else:
        del lines[i]
    return b"".join(lines)


@pytest.mark.parametrize("damage", [flip, cut, inserted, overwritten, lines_moved])
def test_damage_is_found_or_loses_only_the_end(
    path: Path, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    """The records read after it are a correct prefix of those that were written."""
    whole, rng = path.read_bytes(), random.Random(damage.__name__)
    found = 0
    for _ in range(400):
        path.write_bytes(content := damage(whole, rng))
        try:
            header, records = read(path)
        except Refused as refusal:
            found += 1
            told = str(refusal)
            assert path.read_bytes() == content
            assert "\n" not in told
            assert "remove" in told or "take another file" in told
            continue
        assert records == RECORDS[: len(records)]
        assert header in (None, {"schema": "tests/records", "version": 2, "made": "by the test"})
    assert found > 200


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_empty(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes(content)
    try:
        assert read(file) == (None, [])
    except Refused:
        assert file.read_bytes() == content


@pytest.mark.parametrize(
    "content", ["notes without an end", "notes\n", '{"a": 1}\n', "[1]\n", '{"schema":"other","version":2}\n']
)
def test_files_of_others_are_left_alone(tmp_path: Path, content: str) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text(content)
    with pytest.raises(Refused, match=r"take another file"):
        opened(file)
    assert file.read_text() == content


def test_another_version_is_refused(path: Path) -> None:
    with pytest.raises(
        Refused, match=r"version 2; expected 'tests/records', version 3: go on with the package"
    ):
        opened(path, version=3)


def test_two_never_write_at_once(path: Path) -> None:
    file = opened(path)
    with pytest.raises(Refused, match="is in use by another search"):
        opened(path)
    file.close()
    opened(path).close()


HOLDER = """
import sys
from pathlib import Path
from tts_decode.records.record_file import RecordFile
file = RecordFile(Path(sys.argv[1]), "tests/records", 2, resume=True, error=ValueError)
file.write({"n": "theirs"})
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_leaves_no_lock_and_whole_lines(path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Refused, match="is in use"):
        opened(path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert read(path)[1] == [*RECORDS, {"n": "theirs"}]


def test_a_full_disk_leaves_what_was_written(path: Path) -> None:
    """Of a limit on the file's size, which the system takes note of in the middle of a line."""
    file = opened(path)
    with (
        files_of_at_most(path.stat().st_size + 20),
        pytest.raises(Refused, match=r"File too large; free some space and resume: what was written"),
    ):
        file.write({"text": "x" * 1000})
    file.write({"text": "there is space again"})
    file.close()
    assert read(path)[1] == [*RECORDS, {"text": "there is space again"}]


def test_a_disk_that_takes_half_of_each_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: write(handle, data[: len(data) // 2 + 1], at))
    file = opened(path)
    file.write({"text": "x" * 1000})
    file.close()
    assert read(path)[1] == [*RECORDS, {"text": "x" * 1000}]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/full")])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "it")
    with pytest.raises(Refused, match=r"cannot be used: (Is a directory|it is not a plain file); see to it"):
        opened(tmp_path / "it")


def test_a_missing_folder_and_a_file_that_must_not_be_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match="No such file or directory; see to it, or take another file"):
        opened(path.parent / "none" / "a.jsonl")

    def denied(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # by hand: for root everything is allowed
    with pytest.raises(Refused, match=r"a\.jsonl: cannot be used: Permission denied"):
        opened(path)


def test_what_could_not_be_read_again_is_not_written(path: Path) -> None:
    file = opened(path)
    with pytest.raises(Refused, match="half of a surrogate pair"):
        file.write({"text": "\ud800"})
    file.write({"text": "fine"})
    file.close()
    assert read(path)[1] == [*RECORDS, {"text": "fine"}]
