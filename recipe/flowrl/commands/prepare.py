"""Makes what a run needs: data sets and base policies of the recipe's own tasks, and the data of public sets."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path

from recipe.flowrl.common import rules
from recipe.flowrl.common.cache import cache_directory
from recipe.flowrl.common.command_line import Command, option
from recipe.flowrl.common.errors import FAILED, UserError
from recipe.flowrl.evaluate.contests import API, PAUSE_S
from recipe.flowrl.prepare.own_tasks import MAKERS
from recipe.flowrl.prepare.public_sets import DOMAINS

STANDINGS = "codeforces_standings"
_PUBLIC = ("source", "collection", "skip", "keep_overlap")
_STANDINGS = ("api", "pause_s")


@dataclass(frozen=True)
class Options:
    """What to make, and where. Raises UserError for options that none of the names takes."""

    names: tuple[str, ...] = option(
        "What to make: the recipe's own data and base policies, public sets, standings for a Codeforces rating.",
        rule=rules.one_of((*MAKERS, *DOMAINS, STANDINGS)),
        place="NAME",
    )
    cache: Path = option(
        "Directory in which each name has its own.",
        fill=lambda given: cache_directory(),
        default="$FLOWRL_CACHE, ~/.cache/flowrl",
    )
    out: Path | None = option(
        "Directory for the files of a public set or of the standings.", value=None, default="CACHE/NAME"
    )
    source: Path | None = option(
        "Directory with the files that a public set is made from; null: they are downloaded.",
        value=None,
        rule=rules.DIRECTORY,
    )
    collection: str = option(
        "Whose preparation of a public set: its own, or that of the paper's authors.",
        value="original",
        rule=rules.one_of(("original", "authors")),
    )
    skip: tuple[str, ...] = option("Sources of a public set to leave out.", value=())
    keep_overlap: bool = option("Train also on problems that stand in a test set.", value=False)
    api: str = option("Codeforces's interface, or that of a mirror.", value=API, rule=rules.URL)
    pause_s: float = option("Seconds between two requests to it.", value=PAUSE_S, rule=rules.NOT_NEGATIVE)

    def __post_init__(self) -> None:
        defaults = {item.name: item.default for item in fields(self)}
        kinds = {"a public set": (DOMAINS, (*_PUBLIC, "out")), STANDINGS: ((STANDINGS,), (*_STANDINGS, "out"))}
        allowed = {key for names, keys in kinds.values() if set(names) & set(self.names) for key in keys}
        for key in (*_PUBLIC, *_STANDINGS, "out"):
            if getattr(self, key) != defaults[key] and key not in allowed:
                whose = " or ".join(kind for kind, (_, keys) in kinds.items() if key in keys)
                raise UserError(f"{key}=: is for {whose}; asked for is {', '.join(self.names)}")
        if self.out is not None and len(self.names) > 1:
            raise UserError(f"out= is one directory, for one name; asked for are {', '.join(self.names)}")


def run(options: Options) -> int | None:
    """Returns 1 if standings are missing."""
    status = None
    for name in options.names:
        out = options.out or options.cache / name
        if name == STANDINGS:
            from recipe.flowrl.evaluate.contests import fetch_all

            status = FAILED if fetch_all(out, options.api, options.pause_s) else status
        elif name in DOMAINS:
            from recipe.flowrl.prepare.public_sets import prepare, say

            say(prepare(name, out, options.source, options.skip, options.collection, options.keep_overlap), out)
        else:
            _make(name, options.cache)
    return status


def _make(name: str, cache: Path) -> None:
    from recipe.flowrl.common.signals import ends_with_its_children
    from recipe.flowrl.prepare.own_tasks import make
    from recipe.flowrl.reporting.console import RunConsole

    with ends_with_its_children(), RunConsole(sys.stdout) as console:
        console.message(f"{name}: {make(name, cache, console)}")


COMMAND = Command(
    Options,
    run,
    examples=("countdown tiny_qwen2", "math out=DATA", f"{STANDINGS} out=STANDINGS"),
    notes=("A public set has train.parquet, test_NAME.parquet for each test set, and an account of what was dropped.",),
)
