"""The published figures, as committed in ``published.yaml``."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).parent / "published.yaml"
TRUST = {"P": "the paper's own text, arXiv 2509.15207v3", "S": "second-hand, not checked against the primary text"}
PROTOCOL = ("n", "temperature", "top_p", "max_tokens")
"""What the paper says of how it sampled."""


@dataclass(frozen=True)
class Row:
    """A published system: ``values`` column by column, and the ``average`` where the paper gives one."""

    name: str
    values: tuple[float, ...]
    average: float | None = None


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper. ``systems``: by the name that an evaluation of ours goes by."""

    key: str
    title: str
    group: str
    trust: str
    source: str
    protocol: dict[str, float]
    columns: tuple[str, ...]
    systems: dict[str, Row]

    @property
    def has_average(self) -> bool:
        """Whether the last column is the mean of the others."""
        return all(row.average is not None for row in self.systems.values())

    @property
    def reference(self) -> str:
        """Where the figures are from, and what that is worth."""
        return f"{self.source} [{self.trust}: {TRUST[self.trust]}]"


@dataclass(frozen=True)
class PublishedDiversity:
    """The judge's mean scores, 1 to 5, by system."""

    title: str
    reference: str
    groups: tuple[str, ...]
    systems: dict[str, tuple[str, float]]


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    """All tables, in the order in which they are shown."""
    return tuple(
        PublishedTable(
            key=key,
            title=entry["title"],
            group=entry["group"],
            trust=entry["trust"],
            source=entry["source"],
            protocol=entry["protocol"],
            columns=tuple(entry["columns"]),
            systems={
                system: Row(row["name"], tuple(row["values"]), row.get("average"))
                for system, row in entry["systems"].items()
            },
        )
        for key, entry in _content()["tables"].items()
    )


@cache
def published_diversity() -> PublishedDiversity:
    """Figure 4."""
    entry = _content()["diversity"]
    return PublishedDiversity(
        entry["title"],
        f"{entry['source']} [{entry['trust']}: {TRUST[entry['trust']]}]",
        tuple(entry["groups"]),
        {system: (row["name"], row["value"]) for system, row in entry["systems"].items()},
    )


@cache
def _content() -> dict:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
