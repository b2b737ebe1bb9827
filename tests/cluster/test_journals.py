"""A journal that is written on one machine and copied, in pieces, to another one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from cluster_work import here, tiny_search
from tts_decode.cluster.journals import JournalCopy, Piece, TailedJournal
from tts_decode.errors import JournalError
from tts_decode.search import Journal

pytestmark = pytest.mark.usefixtures("one_thread")


def tailed(folder: Path, content: bytes = b"", named: str = "runs/0.journal") -> TailedJournal:
    folder.mkdir(exist_ok=True)
    return TailedJournal(folder, content, named)


def whole_journal(folder: Path) -> bytes:
    journal = tailed(folder)
    here(tiny_search(1), journal.journal)
    return (folder / "journal").read_bytes()


def test_the_copy_is_the_journal(tmp_path: Path) -> None:
    data = whole_journal(tmp_path / "first")
    there = tailed(tmp_path / "there")
    copy = JournalCopy(tmp_path / "copy")
    piece = there.piece()
    assert piece == Piece(0, b"")
    written = 0
    for end in (100, 1000, 1000, 4000, len(data)):
        (tmp_path / "there" / "journal").write_bytes(data[:end])
        whole = data[:end].rfind(b"\n") + 1
        piece = there.piece()
        assert (piece is None) == (whole == written)
        if piece is not None:
            assert piece.offset == written
            copy.add(piece)
        written = whole
        assert copy.content() == data[:whole]
    copy.close()


def test_what_comes_before_the_first_report_is_in_it(tmp_path: Path) -> None:
    there = tailed(tmp_path / "there", b"")
    here(tiny_search(1), there.journal)
    copy = JournalCopy(tmp_path / "copy")
    piece = there.piece()
    assert piece is not None
    copy.add(piece)
    assert copy.content() == (tmp_path / "there" / "journal").read_bytes() != b""
    copy.close()


def test_a_search_goes_on_from_a_copy_whose_last_line_is_cut(tmp_path: Path) -> None:
    expected = [node.text for node in here(tiny_search(1)).tree]
    data = whole_journal(tmp_path / "first")
    cut = data[: len(data) * 2 // 3]
    assert not cut.endswith(b"\n")
    (tmp_path / "copy").write_bytes(cut)
    copy = JournalCopy(tmp_path / "copy")
    there = tailed(tmp_path / "there", copy.content())
    piece = there.piece()
    assert piece == Piece(cut.rfind(b"\n") + 1, b"")
    copy.add(piece)
    assert copy.content() == cut[: piece.offset]
    result = here(tiny_search(1), there.journal)
    assert [node.text for node in result.tree] == expected
    rest = there.piece()
    assert rest is not None
    copy.add(rest)
    assert copy.content() == (tmp_path / "there" / "journal").read_bytes()
    copy.close()
    Journal(tmp_path / "copy", resume=True).close()


def test_a_journal_of_another_search_is_named_as_the_pool_knows_it(tmp_path: Path) -> None:
    data = whole_journal(tmp_path / "first")
    there = tailed(tmp_path / "there", data)
    with (
        pytest.raises(JournalError, match=r"^journal runs/0\.journal belongs to another search"),
        there.named_errors(),
    ):
        here(tiny_search(2), there.journal)
    with pytest.raises(JournalError, match=r"^runs/0\.journal: line 2 is damaged"):
        tailed(tmp_path / "damaged", data.replace(b'"spent"', b'"spend"', 1))


def test_a_file_in_use_is_told(tmp_path: Path) -> None:
    first = JournalCopy(tmp_path / "copy")
    with pytest.raises(JournalError, match="copy: is in use by another search"):
        JournalCopy(tmp_path / "copy")
    first.close()
    JournalCopy(tmp_path / "copy").close()


def test_a_full_disk_leaves_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = JournalCopy(tmp_path / "copy")
    copy.add(Piece(0, b"one\ntwo\n"))

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(JournalError, match="copy: cannot be used: No space left on device"):
        copy.add(Piece(8, b"three\n"))
    assert copy.content() == b"one\ntwo\n"
    copy.close()
