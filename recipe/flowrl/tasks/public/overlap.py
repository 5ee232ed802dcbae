"""Which training problems also stand in a test set: the same text, or thirteen words in a row."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

N = 13
"""Words of a phrase that counts as overlap, as in GPT-3's contamination study (arXiv 2005.14165, appendix C)."""

COMMON_IN_TESTS, COMMON_IN_TRAINING = 3, 5
"""A phrase that occurs in so many different problems is a set phrase ("where m and n are relatively prime positive
integers"), and proves nothing. Four fifths of the matches of DAPO-Math-17k with AIME are of this kind."""


class TestIndex:
    """The problems of test sets, to look training problems up in.

    Args:
        problems: by test set.
        training: the problems that will be looked up, to know their set phrases.
    """

    __test__ = False  # for pytest

    def __init__(self, problems: Mapping[str, Iterable[str]], training: Iterable[str] = ()) -> None:
        self._exact: dict[str, str] = {}
        self._phrases: dict[tuple[str, ...], str] = {}
        counts: Counter[tuple[str, ...]] = Counter()
        seen: set[str] = set()
        for name, texts in problems.items():
            for text in texts:
                normal = normalized(text)
                self._exact.setdefault(normal, name)
                if normal in seen:
                    continue  # two test sets share it
                seen.add(normal)
                phrases = set(_phrases(normal))
                counts.update(phrases)
                for phrase in phrases:
                    self._phrases.setdefault(phrase, name)
        in_training = Counter(p for text in training for p in set(_phrases(normalized(text))) if p in self._phrases)
        for phrase in list(self._phrases):
            if counts[phrase] >= COMMON_IN_TESTS or in_training[phrase] >= COMMON_IN_TRAINING:
                del self._phrases[phrase]

    def find(self, text: str) -> tuple[str, str] | None:
        """The kind of overlap, ``exact`` or ``13-gram``, and the test set; None if there is none."""
        normal = normalized(text)
        if normal in self._exact:
            return "exact", self._exact[normal]
        match = next((self._phrases[phrase] for phrase in _phrases(normal) if phrase in self._phrases), None)
        return (f"{N}-gram", match) if match else None


def normalized(text: str) -> str:
    """``text`` as lower-case words and numbers, separated by single spaces; mathematical signs are left out."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _phrases(normal: str) -> Iterable[tuple[str, ...]]:
    words = normal.split()
    return (tuple(words[start : start + N]) for start in range(len(words) - N + 1))
