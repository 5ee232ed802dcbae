"""A task of a public data set, in the form that all of them are brought to."""

from dataclasses import dataclass


class Malformed(ValueError):
    """A row that can't become a task; the message says why, in words that are the same for all rows alike."""


@dataclass(frozen=True)
class Task:
    """One problem with what decides whether a response is right.

    Raises:
        Malformed: a text can't be written to a file.
    """

    text: str
    """The problem itself, without instructions: what overlap and repetition are judged by."""
    prompt: str
    """What the model reads."""
    ground_truth: str
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        for name, text in (("problem", self.text), ("prompt", self.prompt), ("answer", self.ground_truth)):
            if not is_unicode(text):
                raise Malformed(f"{name} with a lone surrogate, which is no Unicode")


def is_unicode(text: str) -> bool:
    """Whether ``text`` can be encoded: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
