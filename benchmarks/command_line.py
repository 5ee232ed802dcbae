"""What the commands of the benchmarks have in common."""

import argparse
import signal
import sys
from collections.abc import Collection, Sequence


def chosen(
    parser: argparse.ArgumentParser, known: Collection[str], arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """The options, ``names`` among them: which of ``known`` are asked for, by default all; others are refused.

    From here on a SIGTERM is an exit, so that what was started is ended.
    """
    listed = ", ".join(known)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which, by default all: {listed}")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {listed}")
    options.names = options.names or list(known)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return options
