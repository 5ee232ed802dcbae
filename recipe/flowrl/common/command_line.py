"""The command line of every command: ``key=value`` in Hydra's grammar, typed through a dataclass.

A field of the dataclass says all there is to say about an option, once: the annotation its type, the default, and
:func:`option` its documentation and what it accepts. What :func:`parse` returns is checked.
"""

import dataclasses
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipe.flowrl.common import rules
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.rules import Rule, guess

PROGRAM = "python -m recipe.flowrl"
"""How a user starts a command; where the project is installed, ``flowrl`` is the same."""

_RULES = {bool: rules.BOOLEAN, int: rules.INTEGER, float: rules.FINITE, str: rules.TEXT, Path: rules.PATH}
_WIDTH = 110
"""Columns of a help text."""

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """What the annotation and the default of a field don't say.

    Attributes:
        doc: what it is for, a sentence.
        rule: what it accepts, of a list each element; None: all that the annotation does.
        default: the default in words, where it follows from something else.
        fill: that default, from the other options.
        place: its name in a usage line where it is also given by its place alone; of several, in their order.
        labels: whether such an argument may be ``LABEL=PATH``.
        overrides: it takes every ``key=value`` that is no option of the command, for the run's configuration.
    """

    doc: str
    rule: Rule | None = None
    default: str | None = None
    fill: Callable[[DictConfig], Any] | None = None
    place: str | None = None
    labels: bool = False
    overrides: bool = False


@dataclass(frozen=True)
class Command:
    """A command of the front door.

    Attributes:
        options: the dataclass that its arguments are parsed into.
        run: carries it out; returns the exit status, None for 0.
        examples: of its arguments.
        notes: what is to be known beyond the options, a paragraph each.
        hydra: its arguments go to Hydra as they are, flags included.
    """

    options: type
    run: Callable[[Any], int | None]
    examples: Sequence[str]
    notes: Sequence[str] = ()
    hydra: bool = False


def option(doc: str, *, value: Any = dataclasses.MISSING, **rest: Any) -> Any:
    """A field of a dataclass of options: ``value`` is its default, ``rest`` as in :class:`Option`."""
    metadata = {"option": Option(doc, **rest)}
    if isinstance(value, dict):
        return field(default_factory=value.copy, metadata=metadata)
    return field(default=value, metadata=metadata)


def overrides() -> Any:
    """The field that takes the overrides of the run's configuration."""
    return option("Overrides of the run's configuration, as Hydra takes them.", value=(), overrides=True)


def parse(schema: type[T], arguments: Sequence[str], usage: str = "") -> T:
    """An instance of the dataclass ``schema`` from the arguments of a command line.

    Args:
        schema: its fields are made by :func:`option`.
        arguments: ``key=value``, and what is given by its place.
        usage: how the command is called, for a message about what is missing.

    Raises:
        UserError: a key or value is wrong, or one is missing; a line that says which, and what is allowed.
    """
    given = _read_all(schema, _assign(schema, arguments))
    try:
        node = OmegaConf.merge(OmegaConf.structured(schema), given)
        OmegaConf.set_readonly(node, False)
        for name, about in _options(schema).items():
            if about.fill is not None and name not in given:
                node[name] = about.fill(node)
            elif OmegaConf.is_missing(node, name):
                raise UserError(_missing(name, about, usage))
        values = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error.msg or error).split())) from error
    hints = get_type_hints(schema)
    return schema(
        **{
            name: tuple(value) if _shape(hints[name])[0] is tuple and value is not None else value
            for name, value in values.items()
        }
    )


def help_text(name: str, summary: str, command: Command) -> str:
    """What ``COMMAND --help`` prints: usage, options with type and default, examples."""
    hints, about = get_type_hints(command.options), _options(command.options)
    fields = {item.name: item for item in dataclasses.fields(command.options)}
    lines = [f"{PROGRAM} {name} {_usage(command)}".rstrip(), "", *textwrap.wrap(summary, _WIDTH)]
    for note in command.notes:
        lines += ["", *(line for part in note.splitlines() for line in _wrapped(part))]
    lines += ["", "Options:"]
    for key, one in about.items():
        if one.overrides:
            lines.append("  KEY=VALUE of the run's configuration; default: none")
        else:
            also = f" (or {one.place} by itself)" if one.place else ""
            written = f"{key}.NAME" if _shape(hints[key])[0] is dict else key
            accepts = f"{_type_words(hints[key], one)}; {_default_words(fields[key], one)}"
            lines += _wrapped(f"  {written}=VALUE{also}: {accepts}")
        lines += _wrapped(f"      {one.doc}")
    lines += ["", "Examples:" if len(command.examples) > 1 else "Example:"]
    lines += [f"  {PROGRAM} {name} {example}".rstrip() for example in command.examples]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    """``text`` in lines, as far indented as it is; an option's further lines as far as what is said about it."""
    indent = " " * (len(text) - len(text.lstrip()))
    rest = indent and " " * 6
    return textwrap.wrap(text.strip(), _WIDTH, initial_indent=indent, subsequent_indent=rest, break_on_hyphens=False)


def is_required(item: dataclasses.Field) -> bool:
    """Whether the option of this field has no default."""
    no_default = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    return no_default and item.metadata["option"].fill is None


def _options(schema: type) -> dict[str, Option]:
    return {item.name: item.metadata["option"] for item in dataclasses.fields(schema)}


def _usage(command: Command) -> str:
    hints, words, rest = get_type_hints(command.options), [], False
    for item in dataclasses.fields(command.options):
        one = item.metadata["option"]
        if one.place:
            words.append(one.place + ("…" if _shape(hints[item.name])[0] is tuple else ""))
        elif is_required(item):
            words.append(f"{item.name}=VALUE")
        else:
            rest = True
    return " ".join([*words, *(["[KEY=VALUE …]"] if rest else [])])


def _shape(hint: Any) -> tuple[type, type, bool]:
    """(tuple, dict or the scalar's type; the type of the elements; whether it may be None) of an annotation."""
    members = [hint]
    if get_origin(hint) in (types.UnionType, Union):
        members = [member for member in get_args(hint) if member is not type(None)]
    container = get_origin(members[0])
    inner = get_args(members[0])[0] if container is tuple else members[0]
    return container or members[0], inner, members != [hint]


def _rule(hint: Any, about: Option) -> Rule:
    return about.rule or _RULES[_shape(hint)[1]]


def _type_words(hint: Any, about: Option) -> str:
    """What an option accepts, in words."""
    container, _, optional = _shape(hint)
    if container is dict:
        return "a value as Hydra reads it, of each NAME"
    words = _rule(hint, about).allowed + (", several with commas between" if container is tuple else "")
    return f"{words}, or null" if optional else words


def _default_words(item: dataclasses.Field, about: Option) -> str:
    if about.default:
        return f"default: {about.default}"
    if is_required(item):
        return "required"
    if item.default is dataclasses.MISSING:  # settings
        return "default: none"
    return f"default: {as_argument(item.default) or 'none'}"


def as_argument(value: Any) -> str:
    """``value`` as it is written on a command line."""
    if isinstance(value, tuple):
        return ",".join(map(as_argument, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _assign(schema: type, arguments: Sequence[str]) -> dict[str, list[str]]:
    """The texts that each option is given; overrides, places and settings (``engine.NAME=``) may have several."""
    about, hints = _options(schema), get_type_hints(schema)
    places = [name for name, one in about.items() if one.place]
    rest = next((name for name, one in about.items() if one.overrides), None)
    given: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        name = key.partition(".")[0]
        if equals and key in about and not about[key].overrides:
            given[key] = [f"={text}"]  # the last one counts, as in Hydra
        elif equals and name in about and _shape(hints[name])[0] is dict:
            given.setdefault(name, []).append(argument.removeprefix(f"{name}."))
        elif argument.startswith("-") or not _by_place(argument, about, places):
            if rest is None or argument.startswith("-") or not (equals or argument.startswith("~")):
                raise UserError(_unknown(argument, about, bool(places)))
            given.setdefault(rest, []).append(argument)
        else:
            name = next((name for name in places if name not in given or _shape(hints[name])[0] is tuple), None)
            if name is None:
                raise UserError(f"{argument}: one too many; expected {' '.join(about[n].place for n in places)}")
            given.setdefault(name, []).append(argument)
    return given


def _by_place(argument: str, about: Mapping[str, Option], places: Sequence[str]) -> bool:
    """Whether an argument that is no known key stands for what is given by its place."""
    if not places:
        return False
    _, equals, path = argument.partition("=")
    labels = any(about[name].labels for name in places)
    return not equals or Path(argument).exists() or (labels and Path(path).exists())


def _unknown(argument: str, about: Mapping[str, Option], places: bool) -> str:
    keys = [name for name, one in about.items() if not one.overrides]
    key, equals, _ = argument.lstrip("-").partition("=")
    close = guess(key.replace("-", "_"), keys)
    if argument.startswith("-"):
        return f"{argument}: options are written KEY=VALUE{close}"
    if not equals:
        return f"{argument!r}: expected KEY=VALUE{close}"
    paths = ", and there is no such file or directory" if places else ""
    return f"{key}: no such option{close}{paths}; there are {', '.join(keys)}"


def _missing(name: str, about: Option, usage: str) -> str:
    what = about.place or f"{name}="
    return f"{what} is missing: {about.doc.rstrip('.')}" + (f"; for example {usage}" if usage else "")


def _read_all(schema: type, given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    hints, about, values = get_type_hints(schema), _options(schema), {}
    for name, texts in given.items():
        container, kind, optional = _shape(hints[name])
        if about[name].overrides:
            values[name] = list(texts)
        elif container is dict:
            values[name] = _settings(name, texts)
        elif texts[0] == "=null" and optional:
            values[name] = None
        elif container is tuple:
            words = [word for text in texts for word in (_split(text[1:]) if text.startswith("=") else [text])]
            values[name] = [_checked(name, word, kind, _rule(hints[name], about[name])) for word in words]
        else:
            values[name] = _checked(name, texts[0].removeprefix("="), kind, _rule(hints[name], about[name]))
    return values


def _checked(name: str, text: str, kind: type, rule: Rule) -> Any:
    value = _unquoted(text) if kind in (str, Path) else _element(text)
    if not rule.accepts(value):
        raise UserError(f"{name}={text}: must be {rule.allowed}{guess(value, rule.names)}")
    return rule.convert(value)


def _settings(name: str, texts: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key:
            raise UserError(f"{name}={value}: write each setting as {name}.NAME=VALUE")
        settings[key] = _element(value)
    return settings


def _element(text: str) -> Any:
    """``text`` as Hydra reads a value: a number, a truth value, null, a list, a mapping, else the text itself."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_rule(text, "element")
    except HydraException:
        return text
    return value.text if isinstance(value, QuotedString) else value


def _unquoted(text: str) -> str:
    """``text`` without the pair of quotes in which Hydra wants what has special characters."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _split(text: str) -> list[str]:
    """The elements of ``a,b`` or ``[a,b]``."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [word.strip() for word in inner.split(",")]
