"""The lock file: what is pinned comes back, in the same order each time, and damage is never taken for nothing."""

from pathlib import Path

import pytest

from catalog import CatalogInvalid, Lock, read_lock, write_lock

A, B = "sha256:" + "ab" * 32, "local:sha256:" + "cd" * 32


def test_what_is_pinned_comes_back_and_the_file_is_the_same_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "catalog.lock"
    assert read_lock(path) == Lock()
    one = Lock().with_image("x:1", A).with_image("a:2", B).with_tools("box", {"put": A, "get": A})
    write_lock(path, one)
    assert read_lock(path) == one
    text = path.read_text()
    write_lock(path, Lock().with_tools("box", {"get": A, "put": A}).with_image("a:2", B).with_image("x:1", A))
    assert path.read_text() == text
    assert read_lock(path).without_image("x:1").images == {"a:2": B}
    assert [file.name for file in tmp_path.iterdir()] == ["catalog.lock"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", '{"version": 2}', '{"version": 1, "image": {}}', '{"version": 1, "images": []}'),
        *('{"version": 1, "images": {"x": "latest"}}', '{"version": 1, "images": {"x": "sha256:AB"}}'),
        *('{"version": 1, "tools": {"x": []}}', '{"version": 1, "tools": {"x": {"y": 1}}}', "\x00"),
    ],
)
def test_a_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "catalog.lock"
    path.write_text(text)
    with pytest.raises(CatalogInvalid, match=r"catalog\.lock"):
        read_lock(path)
