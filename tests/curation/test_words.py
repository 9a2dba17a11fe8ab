"""Words are found whole, in any case and script."""

from __future__ import annotations

import pytest

from talkforge.curation.words import occurrences, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Lay red with P9, again!", ["lay", "red", "with", "p9", "again"]),
        ("I DON’T 'know'.", ["i", "don't", "know"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ﬁne Cafe\u0301", ["fine", "café"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("well-known", ["well", "known"]),
        (" ... ", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("phrases", "count"),
    [
        (["damn"], 2),
        (["DAMN", "damn"], 2),
        (["dam"], 0),
        (["so damn"], 1),
        (["damn", "so damn"], 3),
        (["it's"], 1),
        (["", "..."], 0),
        ([], 0),
    ],
)
def test_occurrences(phrases: list[str], count: int) -> None:
    assert occurrences("It’s so Damn hot, damn! Goddamned.", phrases) == count
