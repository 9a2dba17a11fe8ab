"""The words of a text, so that one can look for some of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def words_of(text: str) -> list[str]:
    """Words in order, casefolded: runs of letters, marks and digits, whatever the script.

    A script without spaces gives whole phrases as one word.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    spaced = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return [word for run in spaced.split() if (word := run.strip("'"))]


def occurrences(text: str, phrases: Iterable[str]) -> int:
    """How often the phrases, of one word or several, occur in the text as whole words."""
    found = words_of(text)
    wanted = {tuple(words_of(phrase)) for phrase in phrases} - {()}
    return sum(tuple(found[at : at + len(phrase)]) == phrase for phrase in wanted for at in range(len(found)))
