"""What is a secret, and text or a configuration without any. The one list of patterns. Standard library only.

A name says it (``wandb_api_key``), or a value's own shape (``hf_...``, ``https://user:password@host``). A secret under
an innocent name and without a shape can't be known.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MASK = "***"

_WORDS = (
    r"api[-_. ]?keys?",
    r"access[-_. ]?keys?",
    r"account[-_. ]?keys?",
    r"(?:private|signing|encryption|license|ssh|master)[-_. ]?keys?",
    r"secrets?",
    r"passw(?:or)?ds?",
    r"passwd",
    r"pass[-_. ]?phrases?",
    r"pwd",
    r"credentials?",
    r"authorization",
    r"bearer",
    r"cookies?",
    r"(?:auth|access|refresh|id|api|bot|hf|hub|hugging[-_. ]?face|wandb|github|gitlab)[-_. ]?tokens?",
    r"(?:session|security|bearer|user|personal|deploy|sas)[-_. ]?tokens?",
    r"webhook(?:[-_. ]?url)?",
    r"(?:database|redis|connection)[-_. ]?(?:url|uri|dsn|string)",
    r"dsn",
)
_SUFFIX = r"(?:[-_.](?:id|value|base64|b64|json|str|env|pem|\d+))*"
_SECRET_NAME = re.compile(
    rf"(?i)(?:(?:[\w.-]*[-_.])?(?:{'|'.join(_WORDS)})|[\w.-]*(?:passw(?:or)?ds?|secrets?|apikeys?)){_SUFFIX}"
)
_LONGEST_NAME = 128
_CAMEL = re.compile(r"(?<=[a-z\d])(?=[A-Z])")
_ALONE = re.compile(r"(?i)(?:[\w.-]*\.)?(?:token|auth|key)")
"""Names that mean a secret only where nothing else is in them: a tokenizer's ``pad_token``, a row's ``prompt_key``."""

_OF_A_CHECK = re.compile(r"(?i)(?:revision|commit|sha\d*|hash|digest|checksum|fingerprint|version)")
_HEX_KEY = re.compile(r"\b[0-9a-f]{40}\b")

_SHAPES = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",  # JSON Web Tokens
    r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}",
    r"(?<![\w-])(?:sk|pk|rk)-[\w-]{16,}",
    r"\b(?:sk|pk|rk|whsec)_(?:live|test)?_?[A-Za-z0-9]{16,}",
    r"\bgh[pousr]_[A-Za-z0-9]{16,}",
    r"\bgithub_pat_\w{16,}",
    r"(?<![\w-])gl(?:pat|dt|rt|cbt)-[\w-]{16,}",
    r"\b(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{16}\b",
    r"(?<![\w-])AIza[\w-]{30,}",
    r"(?<![\w-])ya29\.[\w-]{16,}",
    r"(?<![\w-])xox[a-z]-[\w-]{10,}",
    r"\b(?:npm|nvapi|gsk|xai|pplx|r8|dop_v1|lin_api|tvly|wandb_v1)[-_]\w{16,}",
    r"(?<![\w-])pypi-[\w-]{16,}",
    r"(?<![\w.-])SG\.[\w-]{16,}\.[\w-]{16,}",
    r"https://hooks\.slack\.com/\S+",
)
_SHAPE = re.compile("|".join(_SHAPES))
_USER_INFO = re.compile(
    r"(?i)(?<![\w+.-])([a-z][a-z0-9+.-]{1,20}://)(?:[^\s/?#@'\":]{0,256}:[^\s'\"]{1,256}|[^\s/?#@'\"]{1,256})@"
)
_SCHEME = re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9+/=._~-]{8,}")
_VALUE = re.compile(
    r"(?i)\"(?:[^\"\\]|\\.){0,4096}\"|'(?:[^'\\]|\\.){0,4096}'"
    r"|(?:(?:bearer|basic|digest|token)[ \t]+)?[^\s,;&}\])\"']+"
)
_NAMED = re.compile(
    rf"(?<![\w.-])(?P<name>[\w.-]{{1,{_LONGEST_NAME}}})(?:['\"]?[ \t]{{0,8}}(?:=|:(?!//))[ \t]{{0,8}}"
    rf"|(?<=[\w])[ \t]{{1,8}}"
    r"(?=\S))"
)
"""A name with what may stand before its value; a blank alone is enough after an option."""

_HARMLESS = {"", *f"value null none ~ true false {{}} [] {MASK} '{MASK}' '' \"\" | > |- >- |+ >+".split()}

_known: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Whether what stands under ``name`` is a secret."""
    name = _CAMEL.sub("_", name[-_LONGEST_NAME:])
    return bool(_SECRET_NAME.fullmatch(name) or _ALONE.fullmatch(name))


def masked(value: Any, name: str = "") -> Any:
    """``value``, of plain mappings, lists and scalars, with :data:`MASK` for each secret; keys and numbers stay."""
    if isinstance(value, Mapping):
        return {key: masked(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, name) for inner in value]
    if is_secret_name(name) and _says_something(value):
        return MASK
    if not isinstance(value, str):
        return value
    if _HEX_KEY.fullmatch(value) and not _OF_A_CHECK.search(name):  # the form of a Weights & Biases key
        return MASK
    return mask(value)


def mask(text: str) -> str:
    """``text`` with :data:`MASK` for each secret: known ones, shapes, and what is assigned to a secret's name."""
    for known in sorted(_known, key=len, reverse=True):
        text = text.replace(known, MASK)
    text = _SHAPE.sub(MASK, text)
    text = _USER_INFO.sub(lambda found: f"{found[1]}{MASK}@", text)
    text = _SCHEME.sub(lambda found: f"{found[1]}{MASK}", text)
    parts, end = [], 0
    for start, value in _assigned_secrets(text):
        quote = value[0] if value[0] in "'\"" else ""
        parts += [text[end:start], quote, MASK, quote]
        end = start + len(value)
    return "".join([*parts, text[end:]])


def remember(config: Any) -> None:
    """Have :func:`mask` hide the secrets of ``config`` (plain mappings, lists, scalars) wherever they turn up."""
    _known.update(secrets_of(config))


def knows_any() -> bool:
    """Whether a secret has been remembered."""
    return bool(_known)


def secrets_of(value: Any, name: str = "") -> set[str]:
    """The secrets in ``value``, of four characters at least, each line of one with several by itself as well."""
    if isinstance(value, Mapping):
        return _union(secrets_of(inner, str(key)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return _union(secrets_of(inner, name) for inner in value)
    if masked(value, name) == value or not isinstance(value, str | int | float):
        return set()
    text = str(value)
    whole = is_secret_name(name) or bool(_HEX_KEY.fullmatch(text))
    found = {text, *text.splitlines(), repr(text)[1:-1]} if whole else set(_shapes_in(text))
    return {secret for secret in found if len(secret) >= 4}


def _shapes_in(text: str) -> Iterator[str]:
    yield from (found[0] for found in _SHAPE.finditer(text))
    for found in _USER_INFO.finditer(text):
        user_info = found[0].removeprefix(found[1]).removesuffix("@")
        yield user_info
        yield user_info.partition(":")[2]
    yield from (value.strip("'\"") for _, value in _assigned_secrets(text))


def _assigned_secrets(text: str) -> Iterator[tuple[int, str]]:
    """Where in ``text`` a value is assigned to a secret's name, and the value."""
    end = 0
    for found in _NAMED.finditer(text):
        option = found["name"].startswith("--")
        if found.start() < end or not (option or found[0].rstrip(" \t")[-1] in "=:"):
            continue
        value = _VALUE.match(text, found.end()) if is_secret_name(found["name"].lstrip("-")) else None
        if value and _says_something(value[0]):
            end = value.end()
            yield value.start(), value[0]


def _says_something(value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and str(value).strip().lower() not in _HARMLESS


def _union(sets: Iterable[set[str]]) -> set[str]:
    return set().union(*sets)
