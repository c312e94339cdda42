"""That two rankings become one in which words decide and meaning helps."""

from catalog.fusion import MEANING_SHARE, NEIGHBOURS, SMOOTHING, fuse


def test_equal_rankings_stay_as_they_are() -> None:
    assert fuse("abcdef", "abcdef") == list("abcdef")


def test_without_one_ranking_the_other_is_the_answer() -> None:
    assert fuse("abc", "") == list("abc")
    assert fuse("", "cba") == list("cba")
    assert fuse("", "") == []


def test_neighbours_by_meaning_come_up_among_equally_good_words() -> None:
    by_words = [f"w{place}" for place in range(20)]
    assert fuse(by_words, ["w11"]).index("w11") < 11
    assert fuse(by_words, ["other", "w11"])[0] == "w0"


def test_what_only_the_meaning_finds_follows_the_words() -> None:
    by_words = [f"w{place}" for place in range(20)]
    assert fuse(by_words, ["far"]) == [*by_words, "far"]


def test_first_by_words_stays_before_whatever_the_meaning_prefers() -> None:
    """Also before the second by words when that is the nearest by meaning, and the first is far away."""
    lead = 1 / (SMOOTHING + 1) - 1 / (SMOOTHING + 2)
    assert lead < MEANING_SHARE / (SMOOTHING + 1), "the nearest would never come up"
    assert fuse(["first", "second", "third"], ["second", "first", "third"])[0] == "first"
    assert fuse(["first", "second"], ["second", *map(str, range(NEIGHBOURS)), "first"])[0] == "second"


def test_only_the_nearest_count() -> None:
    far = [f"m{place}" for place in range(NEIGHBOURS + 5)]
    assert fuse(["w"], far) == ["w", *far[:NEIGHBOURS]]
