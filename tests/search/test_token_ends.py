"""Results hold where a node's tokens end in its text, and the prompt."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from scripted import run_scripted, scripted_decoder
from tiny_searches import SAMPLING, search_decoder
from tts_decode import TreeDecoder
from tts_decode.rewards import mean_probability
from tts_decode.search import SearchResult, SearchRun, best_of_n, rebase


def pieces(node: Any) -> list[str]:
    return [node.text[a:b] for a, b in itertools.pairwise((0, *node.ends))]


def test_tokens_of_steps_are_told_apart() -> None:
    """A token of this tokenizer is a byte; a character appears with its last byte."""
    decoder = search_decoder()
    root = decoder.run(decoder.root("What is 2 + 3?", SAMPLING))

    async def search() -> SearchResult:
        return await rebase(root, n=3, scorer=mean_probability())

    result = decoder.run(search())
    assert (result.tree[0].question, result.tree[0].ends) == ("What is 2 + 3?", ())
    assert (result.stats.page_size, result.stats.page_bytes) == (16, decoder.stats().page_bytes)
    for node in result.tree[1:]:
        assert len(pieces(node)) == len(node.tokens)
        assert "".join(pieces(node)) == node.text
        assert all(len(piece) <= 1 or "\ufffd" in piece for piece in pieces(node))


def test_a_character_of_several_tokens_ends_with_the_last(decoder: TreeDecoder) -> None:
    root = decoder.run(decoder.root("go"))
    decoder.run(root.extend("a\u00e9\U0001f600b"))
    assert root.text_from(2) == "a\u00e9\U0001f600b"
    assert root.text_ends(2) == [1, 1, 2, 2, 2, 2, 3, 4]  # 1, 2, 4 and 1 bytes
    assert root.text_ends(4) == [1, 1, 1, 1, 2, 3]  # from the middle of a character, which ends here
    root.release()


def test_an_engine_that_tells_its_tokens() -> None:
    def script(prefix: str, k: int) -> tuple[str, str]:
        return "two words ", "eos"

    result = run_scripted(scripted_decoder(script), best_of_n, "Q: ", n=1, scorer=mean_probability())
    assert pieces(result.tree[1]) == ["two ", "words ", ""]
    assert (result.tree[0].question, result.stats.page_size) == ("Q: ", 0)


async def asks_again(run: SearchRun) -> SearchResult:
    branch = await run.prompt("Sum of 2 and 3?", question=run.question)
    await run.complete(branch)
    run.end(branch)
    return await run.result()


def test_a_further_prompt_shows_what_it_asks() -> None:
    decoder = search_decoder()

    async def search() -> SearchResult:
        run = SearchRun(await decoder.root("What is 2 + 3?", SAMPLING))
        with run.of("asks_again", {}):
            return await asks_again(run)

    asked = [node.question for node in decoder.run(search()).tree if node.status == "prompt"]
    assert sorted(asked) == ["Sum of 2 and 3?", "What is 2 + 3?"]


@pytest.mark.parametrize("ends", [(1, 2), (3, 2, 9), (-1, 2, 9), (1, 2, 8), (1, 2, 10)])
def test_ends_that_cannot_be_are_refused(ends: tuple[int, ...]) -> None:
    def script(prefix: str, k: int) -> tuple[str, str]:
        return "two words", "eos"

    data = run_scripted(scripted_decoder(script), best_of_n, "Q: ", n=1, scorer=mean_probability()).to_dict()
    assert SearchResult.from_dict(data).to_dict() == data
    data["tree"][1]["ends"] = list(ends)
    with pytest.raises(ValueError, match=r"result\.tree\[1\]\.ends: got .*, expected one a token, ascending"):
        SearchResult.from_dict(data)


def test_files_of_before_are_read() -> None:
    decoder = search_decoder()

    async def search() -> SearchResult:
        return await best_of_n(await decoder.root("Hi", SAMPLING), n=2, scorer=mean_probability())

    result = decoder.run(search())
    data = result.to_dict()
    for node in data["tree"]:
        del node["ends"], node["question"]
    del data["stats"]["page_size"], data["stats"]["page_bytes"]
    again = SearchResult.from_dict(data)
    assert [node.text for node in again.tree] == [node.text for node in result.tree]
    assert {(node.ends, node.question) for node in again.tree} == {((), "")}
    assert again.stats.page_size == again.stats.page_bytes == 0
