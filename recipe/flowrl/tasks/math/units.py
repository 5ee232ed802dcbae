"""What may stand beside a value without changing it: units and other words. docs/rewards.md shows the table."""

import re

UNITS: dict[str, tuple[str, ...]] = {
    "mm": ("millimeter", "millimeters", "millimetre", "millimetres"),
    "cm": ("centimeter", "centimeters", "centimetre", "centimetres", "cms"),
    "dm": ("decimeter", "decimeters"),
    "m": ("meter", "meters", "metre", "metres"),
    "km": ("kilometer", "kilometers", "kilometre", "kilometres"),
    "nm": ("nanometer", "nanometers"),
    "in": ("inch", "inches"),
    "ft": ("foot", "feet"),
    "yd": ("yard", "yards"),
    "mi": ("mile", "miles"),
    "mg": ("milligram", "milligrams"),
    "g": ("gram", "grams"),
    "kg": ("kilogram", "kilograms"),
    "lb": ("lbs", "pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "ml": ("mL", "milliliter", "milliliters"),
    "L": ("liter", "liters", "litre", "litres"),
    "s": ("sec", "secs", "second", "seconds"),
    "min": ("mins", "minute", "minutes"),
    "h": ("hr", "hrs", "hour", "hours"),
    "day": ("days",),
    "week": ("weeks",),
    "month": ("months",),
    "year": ("years", "yr", "yrs"),
    "mph": ("miles per hour",),
    "dollar": ("dollars", "USD"),
    "cent": ("cents",),
    "euro": ("euros", "EUR"),
    "unit": ("units",),
    "K": ("kelvin",),
    "J": ("joule", "joules"),
    "N": ("newton", "newtons"),
    "W": ("watt", "watts"),
    "V": ("volt", "volts"),
    "Hz": ("hertz",),
    "mol": ("mole", "moles"),
    "eV": (),
    "rad": ("radian", "radians"),
    "sq": ("square",),
    "cu": ("cubic",),
}
"""Unit to its other names. One may be left out, but not replaced by another."""

_NAMES = {name: unit for unit, names in UNITS.items() for name in (unit, *names)}
_UNIT_PREFIXES = {"sq": "2", "cu": "3"}

NUMBER_WORDS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
"""Words behind a number that are factors."""

SIGN_WORDS = {"percent": "percent", "degree": "degree", "degrees": "degree"}
"""Words behind a number that are signs."""

MEANING = frozenset(
    "and or not no none if when where for all any some with without mod modulo base choose factorial squared cubed "
    "times plus minus over to from per than less more greater least most infinity undefined dozen half third quarter "
    "am pm a.m. p.m. ad bc true false yes odd even except divided multiplied equals is are".split()
)
"""Words that change what stands beside them: never dropped."""

_WORDS = re.compile(r"[A-Za-z.$°]+(?:[ /-]+[A-Za-z.]+)*")


def unit(text: str) -> str | None:
    """The canonical name of ``text`` as a unit; None if it isn't one. Words that mean something are none."""
    words = " ".join(text.split())
    if words in _NAMES:
        return _NAMES[words]
    parts = words.split(" ")
    if len(parts) == 2 and _NAMES.get(parts[0].lower()) in _UNIT_PREFIXES:
        return f"{_NAMES.get(parts[1], parts[1])}^{_UNIT_PREFIXES[_NAMES[parts[0].lower()]]}"
    if not _WORDS.fullmatch(words) or any(word.lower() in MEANING for word in re.split(r"[ /-]+", words)):
        return None
    return " ".join(_NAMES.get(part, part.lower()) for part in parts)


def is_listed(word: str) -> bool:
    """Whether ``word`` is in the table: it may then stand behind a number without ``\\text{}``."""
    return word in _NAMES
