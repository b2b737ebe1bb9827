"""Tiny models of transformers: with its own attention, and over a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.fixture(scope="module")
def own() -> PreTrainedModel:
    from tree_caches import model_of

    return model_of("sdpa")


@pytest.fixture
def tree() -> PreTrainedModel:
    """The attention is registered by the module of the test."""
    from tree_caches import model_of

    return model_of()
