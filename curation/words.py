"""Splitting a text into words, and counting phrases in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def words_of(text: str) -> list[str]:
    """The words of a text in order, casefolded. A word is a run of letters, marks and digits of any script.

    In a script without spaces a whole phrase is one word.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    spaced = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return [word for run in spaced.split() if (word := run.strip("'"))]


def occurrences(text: str, phrases: Iterable[str]) -> int:
    """How often the phrases, of one word or several, occur in the text as whole words.

    Args:
        text: what is searched.
        phrases: what is counted. Case and punctuation do not matter, and equal phrases count once.
    """
    found = words_of(text)
    wanted = {tuple(words_of(phrase)) for phrase in phrases} - {()}
    return sum(tuple(found[at : at + len(phrase)]) == phrase for phrase in wanted for at in range(len(found)))
