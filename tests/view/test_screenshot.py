"""The picture in the docs is what the page looks like today."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import SHEEP
from PIL import Image
from tts_decode.search import SearchResult
from tts_decode.view import Problem, Shown

PICTURE = Path(__file__).parents[2] / "docs/images/viewer.png"
BLOCK = 20  # pixels a side: letters of another font move within them


def take(driver: Any) -> Image.Image:
    return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")


def blocks(image: Image.Image) -> np.ndarray[Any, Any]:
    """Mean colours of blocks: [height / BLOCK, width / BLOCK, 3], 0 to 255."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    high, wide = (size // BLOCK for size in pixels.shape[:2])
    whole = pixels[: high * BLOCK, : wide * BLOCK].reshape(high, BLOCK, wide, BLOCK, 3)
    return np.asarray(whole.mean(axis=(1, 3)))


@pytest.mark.browser
def test_the_picture_of_the_docs(opened: Callable[..., Any], sheep: SearchResult) -> None:
    """Written anew where it is missing: look at it, and add it."""
    question = sheep.tree[0].question
    driver = opened(Shown("ets", sheep, Problem(0, SHEEP.stem, question, "24", True)))
    now = take(driver)
    if not PICTURE.exists():
        small = now.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        small.save(PICTURE, optimize=True)
    kept = Image.open(PICTURE)
    assert kept.size == now.size
    difference = np.abs(blocks(kept) - blocks(now)).max(axis=2)
    assert difference.mean() < 4
    assert (difference > 40).mean() < 0.02
    turned = blocks(now)[::-1]  # another picture of the same colours is told from it
    assert np.abs(blocks(kept) - turned).max(axis=2).mean() > 8


def test_the_picture_is_small() -> None:
    assert PICTURE.stat().st_size < 200_000
