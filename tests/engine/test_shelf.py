"""Caches kept beside the context: bounded, newest first, each its owner's."""

import pytest

from engine import ChatModel, StoredModel
from engine.shelf import Shelf
from tests.engine.test_chat import ask, text_of


def test_longest_beginning_of_the_same_owner_is_found() -> None:
    shelf = Shelf(100)
    shelf.put("ann", [1, 2, 3], b"short")
    shelf.put("ann", [1, 9], b"other")
    shelf.put("bob", [1, 2, 3, 4, 5], b"bob's")
    found, n_shared = shelf.find("ann", [1, 2, 3, 4, 5])
    assert found is not None
    assert (found.state, n_shared) == (b"short", 3)
    assert shelf.find("eve", [1, 2, 3]) == (None, 0)
    shelf.take(found)
    again, n_shared = shelf.find("ann", [1, 2, 3, 4, 5])
    assert again is not None
    assert (again.state, n_shared) == (b"other", 1)


def test_what_goes_on_replaces_its_beginning_and_the_oldest_goes_first() -> None:
    shelf = Shelf(10)
    shelf.put("ann", [1, 2], b"12345")
    shelf.put("ann", [1, 2, 3], b"54321")
    shelf.put("ann", [7], b"77777")
    assert shelf.find("ann", [1, 2])[1] == 2
    shelf.put("ann", [8], b"88888")
    assert shelf.find("ann", [1, 2]) == (None, 0)
    assert shelf.find("ann", [7])[1] == 1
    shelf.put("ann", [9], b"more than the shelf holds")
    assert shelf.find("ann", [9]) == (None, 0)
    assert shelf.find("ann", [8])[1] == 1


@pytest.mark.anyio
@pytest.mark.model
async def test_conversation_that_rested_goes_on_from_what_was_computed(smollm2: StoredModel) -> None:
    """Two long conversations fill more than idle sequences may: the older one comes back from the shelf."""
    first = ask("Repeat these words: " + "river clock bread " * 120, max_tokens=4)
    second = ask("Count these words: " + "glass paper music " * 120, max_tokens=4)
    async with ChatModel(smollm2, n_ctx=2048) as model:
        whole = await model.complete(first)
        await model.complete(second)
        again = await model.complete(first)
    assert text_of(again) == text_of(whole)
    usage = again["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1 > 300
