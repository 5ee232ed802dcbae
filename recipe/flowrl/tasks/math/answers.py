"""Find the final answer in a response, in whatever form a system was taught to write it. Standard library only.

docs/rewards.md states the rule. Every step reads the text once: quantifiers over what a model writes are bounded.
"""

import re
from collections import deque
from dataclasses import dataclass

LONGEST_ANSWER = 1000
"""Characters. What is longer is no final answer, and too much to hand to a parser."""

_MOST_BOXES = 100
"""Of a response only so many, the last, are looked at."""

_MOST_ANCHORS = 100
"""Of the places that say *answer* only so many, the last, are looked at."""

_PROSE_WORDS = 4

_BOX = re.compile(
    r"\\(?:boxed|fbox|framebox)(?![A-Za-z])(?:\s{0,8}\[[^\[\]{}\n]{0,20}\]){0,2}\s{0,8}"
    r"(?:\{|([+-]?\d{1,60}(?:[.,]\d{1,60})?(?!\w)|[A-Za-z](?!\w)))"
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOXED = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
_JOINT = re.compile(
    r"(?:[\s$,;&]|\\[,;:! ()\[\]]|\\q?quad(?![A-Za-z])|(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)|"
    r"\b[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)
_LONGEST_JOINT = 60
_CONJUNCTION = re.compile(r"[,;]|\b(?:and|or)\b")
_ANCHOR = re.compile(r"\b[Aa](?:nswer|NSWER)(?:([^\w\n:：$\\]{0,10}[:：])|[^\w\n]{0,20}(?![^\n]))")
"""``answer:`` (group 1), or ``answer`` at the end of a line."""
_SENTENCE = re.compile(r"\b[Aa](?:nswer|NSWER)(?:[ \t]{1,8}is\b[ \t]{0,8}:?|[^\w\n:：$\\]{0,10}[:：])")
_LABEL = re.compile(
    r"[^\w\n]{0,40}(?:\d{1,3}[.)][^\w\n]{0,10})?(?:(?:so|thus|hence|therefore|the|my|our)[ \t,]{1,8}){0,3}"
    r"(?:(?:final|correct)[ \t]{1,8})?",
    re.IGNORECASE,
)
"""What may stand between the start of a line and ``answer:``."""
_LONGEST_LABEL = 120
_HEADING = re.compile(r"[^\w\n]{0,40}(?:the[ \t]{1,8})?final[ \t]{1,8}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)")
_NEXT_SENTENCE = re.compile(r"(?<!^[A-J])\.(?=\s{1,8}[A-Z])")
_COMMANDS = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})?")
_WORD = re.compile(r"[A-Za-z]{2,}")
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))
_DISPLAYS = (("\\[", "\\]"), ("$$", "$$"))
_TRAILING = ".,;:。"
_THOUGHT = "</think>"


@dataclass(frozen=True)
class Box:
    """A complete ``\\boxed{}``: where it starts and ends, and what is in it."""

    start: int
    end: int
    content: str


def final_answer(text: str) -> str | None:
    """The answer that ``text`` gives in the end, without its delimiters; None if it gives none.

    Behind the last ``</think>``, if there is one there: the last ``\\boxed{}``, together with boxes before it that only
    commas, *and* or *or* separate from it; or the last line ``Answer: ...`` behind it, unless that is prose; where
    there is neither, the last ``the answer is ...``.
    """
    _, thought, said = text.rpartition(_THOUGHT)
    return (thought and _final_answer(said)) or _final_answer(text)


def _final_answer(text: str) -> str | None:
    boxes = complete_boxes(text)
    start, line = _last_line(text, boxes[-1].start if boxes else 0)
    line = line and (_last_sentence(line) or line)  # Final Answer: The final answer is 7.
    if boxes and (line is None or boxes[-1].start > start or _is_prose(line)):
        found = _joined(text, boxes)
    else:
        found = line if line is not None else _last_sentence(text)
    if len(found) > 2 * LONGEST_ANSWER:
        return None
    answer = strip_delimiters(found)
    return answer if 0 < len(answer) <= LONGEST_ANSWER else None


def strip_delimiters(answer: str) -> str:
    """``answer`` without spaces, sentence ends, emphasis, boxes and mathematics delimiters around it.

    Dollar signs within, as of ``$69$,$84$`` or of an amount of money, go as well.
    """
    previous = None
    while answer != previous:
        previous = answer
        answer = answer.strip()
        if not answer.endswith(".."):  # 3.14... is no end of a sentence
            answer = answer.rstrip(_TRAILING).strip()
        answer = answer.removesuffix("\\")  # of a thin space "\," whose comma is gone
        if answer.count("**") == 1:  # the emphasis began before the answer
            answer = answer.removesuffix("**")
        for left, right in _WRAPPERS:
            inner = answer[len(left) : len(answer) - len(right)]
            if answer.startswith(left) and answer.endswith(right) and len(answer) >= len(left) + len(right):
                if left != "**" or "**" not in inner:  # two powers of a program aren't emphasis
                    answer = inner
        if _BOXED.match(answer):
            boxes = complete_boxes(answer)
            if boxes and boxes[-1].start == 0 and boxes[-1].end == len(answer):
                answer = boxes[-1].content
    return re.sub(r"\\?\$", "", answer).strip()


def last_box(text: str) -> tuple[int, str] | None:
    """Start and content of the last complete ``\\boxed{}``, None if there is none. Nested: the outermost."""
    boxes = complete_boxes(text)
    return (boxes[-1].start, boxes[-1].content) if boxes else None


def complete_boxes(text: str) -> list[Box]:
    """The last boxes of ``text`` that are closed, hold something and aren't too long, in the order of their ends."""
    openings = deque(_BOX.finditer(text), maxlen=_MOST_BOXES)
    boxes = [box for box in (_box(text, opening) for opening in openings) if box and box.content.strip()]
    return sorted(boxes, key=lambda box: box.end)


def _box(text: str, opening: re.Match[str]) -> Box | None:
    if opening[1]:
        return Box(opening.start(), opening.end(), opening[1])
    depth = 1
    for brace in _BRACE.finditer(text, opening.end(), opening.end() + LONGEST_ANSWER + 1):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return Box(opening.start(), brace.end(), text[opening.end() : brace.start()])
    return None


def _joined(text: str, boxes: list[Box]) -> str:
    """The last box, after those that make a list with it."""
    group = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if box.end > group[0].start:
            continue  # it is within the one behind it
        between = text[box.end : group[0].start]
        if len(between) > _LONGEST_JOINT or not _JOINT.fullmatch(between) or not _CONJUNCTION.search(between):
            break
        group.insert(0, box)
    return ", ".join(dict.fromkeys(box.content.strip() for box in group))


def _last_line(text: str, after: int) -> tuple[int, str | None]:
    """Start and content of the last line ``Answer: ...``, or below a heading ``Final Answer``, from ``after`` on."""
    for anchor in reversed(deque(_ANCHOR.finditer(text, after), maxlen=_MOST_ANCHORS)):
        start = text.rfind("\n", max(0, anchor.start() - _LONGEST_LABEL), anchor.start()) + 1
        if start == 0 and anchor.start() > _LONGEST_LABEL:
            continue
        if anchor[1] and _LABEL.fullmatch(text, start, anchor.start()):
            return start, _content(text, anchor.end())
        if (
            not anchor[1]
            and _HEADING.fullmatch(text, start, anchor.start())
            and (content := _content(text, anchor.end()))
        ):
            return start, content
    return 0, None


def _content(text: str, start: int) -> str | None:
    """What stands at ``start``: the rest of the line, or else the next line that isn't empty, or a display."""
    piece = text[start : start + 2 * LONGEST_ANSWER + 50].lstrip(" \t\r\n*_")
    if not piece:
        return None
    for left, right in _DISPLAYS:
        if piece.startswith(left) and (end := piece.find(right, len(left))) > 0:
            return piece[: end + len(right)]
    line = piece.split("\n", 1)[0]
    ended = _NEXT_SENTENCE.search(line)
    return line[: ended.start()] if ended else line


def _last_sentence(text: str) -> str:
    """What follows the last ``answer is`` or ``answer:`` anywhere, up to the end of its sentence."""
    anchors = deque(_SENTENCE.finditer(text), maxlen=1)
    content = (_content(text, anchors[0].end()) if anchors else None) or ""
    ended = _SENTENCE_END.search(content)
    return content[: ended.start()] if ended else content


def _is_prose(line: str) -> bool:
    return len(_WORD.findall(_COMMANDS.sub(" ", line[: 2 * LONGEST_ANSWER]))) >= _PROSE_WORDS
