"""What an entry asks for that the gateway cannot give: named before a start, all of it at once."""

import pytest

from catalog import Entry
from gateway.abilities import lacking, with_defaults


def box(**more: object) -> Entry:
    parts = {"id": "box", "title": "Box", "description": "Keeps things.", "image": "example/box:1"}
    return Entry.model_validate({**parts, **more})


def test_plain_entry_lacks_nothing() -> None:
    assert list(lacking(box(network="internet", env={"A": "1"}))) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"config": [{"name": "url", "required": True}]}, "is not configured: the setting url is missing"),
        ({"oauth": {"provider": "boxes"}}, "needs a sign-in at boxes"),
        (
            {
                "image": None,
                "per_call": [{"name": "put", "description": "Puts.", "image": "a/put:1", "engine_socket": True}],
            },
            "needs the Docker Engine's own socket",
        ),
    ],
)
def test_what_the_gateway_cannot_give_is_named(more: dict[str, object], words: str) -> None:
    (reason,) = lacking(box(**more))
    assert words in reason


def test_optional_secret_and_settings_with_defaults_stand_in_no_way() -> None:
    entry = box(
        secrets=[{"name": "box.key", "env": "KEY", "required": False}],
        config=[{"name": "level", "default": "low", "env": "LEVEL"}, {"name": "more", "env": "MORE"}],
    )
    assert list(lacking(entry)) == []
    assert dict(with_defaults(entry).env) == {"LEVEL": "low"}


def test_token_made_by_hand_stands_in_for_a_sign_in() -> None:
    oauth = {"provider": "boxes", "secret": "box.token"}
    secret = {"name": "box.token", "env": "TOKEN"}
    assert list(lacking(box(oauth=oauth, secrets=[secret]))) == []
    assert "needs a sign-in at boxes" in "".join(lacking(box(oauth=oauth)))
