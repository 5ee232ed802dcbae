"""Fields of other people's rows: texts, references and chats in the forms that data sets have them in."""

import ast
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from recipe.flowrl.tasks.task import Malformed

_NOTHING = frozenset(("nan", "NaN", "NAN", "null", "NULL", "None", "<NA>", "NaT"))
"""What is left of a missing value that was once written as text."""

_USERS = ("user", "human")
CHATS = ("prompt", "messages", "conversations")
"""Fields that hold a chat."""


def text(row: Mapping[str, Any], field: str) -> str:
    """The text in a field, without spaces around it; empty if there is none.

    Raises:
        Malformed: it is something else.
    """
    value = row.get(field)
    if _missing(value):
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{field}: {_kind(value)}, not text")
    return value.strip()


def question(row: Mapping[str, Any], fields: tuple[str, ...]) -> str:
    """What is asked: of ``prompt`` if it is a chat, else the first of ``fields`` that has text, else of another chat.

    Raises:
        Malformed: there is none, or not one in particular.
    """
    found = user_turn(row["prompt"], "prompt") if isinstance(row.get("prompt"), list) else ""
    found = found or next(filter(None, (text(row, field) for field in fields)), "")
    found = found or next(filter(None, (user_turn(row.get(field), field) for field in CHATS)), "")
    if not found:
        raise Malformed("no problem text")
    return found


def user_turn(chat: Any, field: str) -> str:
    """What the user says in a chat: a text, or turns with ``role`` and ``content``, or ``from`` and ``value``.

    A turn's content is a text or a list of parts ``{type: text, text: ...}``. Turns of others are passed over.

    Raises:
        Malformed: it is no chat, has more than one turn of the user, or one that isn't text.
    """
    if _missing(chat) or isinstance(chat, str):
        return text({field: chat}, field)
    if not isinstance(chat, list) or not all(isinstance(turn, dict) for turn in chat):
        raise Malformed(f"{field}: {_kind(chat)}, not a chat")
    said = [turn for turn in chat if (turn.get("role") or turn.get("from")) in _USERS]
    if len(said) > 1:
        raise Malformed(f"{field}: several turns of the user")
    if not said:
        return ""
    content = said[0].get("content") if said[0].get("content") is not None else said[0].get("value")
    if isinstance(content, list):
        content = "".join(_part(part, field) for part in content)
    return text({field: content}, field)


def ground_truth(row: Mapping[str, Any]) -> Any:
    """What verl's schema has for the reference, ``reward_model.ground_truth``; None if the row isn't in it.

    Raises:
        Malformed: ``reward_model`` is no object.
    """
    reward_model = row.get("reward_model")
    if _missing(reward_model):
        return None
    if not isinstance(reward_model, dict):
        raise Malformed(f"reward_model: {_kind(reward_model)}, not an object")
    return reward_model.get("ground_truth")


def references(value: Any, field: str) -> list[str]:
    """The answers in a field, any of which is right: a text, a number, or a list of these, also as JSON.

    Numbers are written out exactly. None, NaN and their names are no answers, also within a list.

    Raises:
        Malformed: it is something else, such as the reference of another reward.
    """
    if isinstance(value, str) and value.lstrip().startswith(('{"', "{'", '["', "['")):
        value = _unwritten(value.strip())
    items = value if isinstance(value, list | tuple) else [value]
    return [_reference(item, field) for item in items if not _missing(item)]


def _reference(value: Any, field: str) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise Malformed(f"{field}: {_kind(value)}, not text or a number")
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise Malformed(f"{field}: an infinite number")
    return format(number, "f")


def _missing(value: Any) -> bool:
    if isinstance(value, float | Decimal):
        return math.isnan(value)
    return value is None or isinstance(value, str) and (not value.strip() or value.strip() in _NOTHING)


def _part(part: Any, field: str) -> str:
    found = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
    if found is not None and not isinstance(found, str):
        raise Malformed(f"{field}: a part that isn't text")
    return found or ""


def _unwritten(written: str) -> Any:
    """The list or object that was written as JSON or as Python; ``written`` itself if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(written)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return written


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), f"a value of type {type(value).__name__}")
