"""How an evaluation was done, and whether it is still the same one when it is taken up again."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_json
from recipe.flowrl.common.foreign import read_text
from recipe.flowrl.evaluate.benchmarks import Benchmark
from recipe.flowrl.evaluate.evaluate_options import Options
from recipe.flowrl.evaluate.model_path import model_fingerprint

NAME = "protocol.json"

DECISIVE = ("n", "temperature", "top_p", "max_tokens")
"""What two evaluations must share, beside the problems, for their numbers to be comparable."""

OF_THE_MODEL = ("model", "model_fingerprint", "engine")
"""What only generation needs: who grades may be where the model isn't."""

_FIXED = (*OF_THE_MODEL, "suite", *DECISIVE, "seed")
"""What can't change between the samples of one evaluation."""


def protocol_of(options: Options, benchmarks: Sequence[Benchmark], grader: str) -> dict[str, Any]:
    """The protocol of ``options``, yet without its engine.

    ``benchmarks`` has for each the SHA-256 of its file, which holds the prompts as they are asked, the problems taken
    from it, and the rows left out because they repeat one.
    """
    return {
        "model": options.model,
        "model_fingerprint": None if options.server else model_fingerprint(options.model),
        "suite": options.suite,
        "benchmarks": {
            item.name: {"sha256": item.sha256, "problems": len(item.problems), "repeated": item.repeated}
            for item in benchmarks
        },
        **{name: getattr(options, name) for name in DECISIVE},
        "seed": options.seed,
        "prompt": "the file's user turn, in the model's chat template",
        "grader": grader,
        "engine": None,
        "date": time.strftime("%Y-%m-%d"),
    }


def recorded(out: Path) -> dict[str, Any] | None:
    """The protocol in ``out``, None if there is none.

    Raises:
        UserError: it can't be read.
    """
    path = out / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(read_text(path))
        if not isinstance(content, dict) or not isinstance(content["benchmarks"], dict):
            raise ValueError("not a protocol")
        return content
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} can't be read ({error}): choose another out=, or remove {out}") from error


def check_same(out: Path, new: Mapping[str, Any]) -> None:
    """Check that samples under the protocol ``new`` may join those in ``out``. An engine of None fits any.

    Raises:
        UserError: they were drawn in another way; names the first difference.
    """
    old = recorded(out)
    if old is None:
        return
    differing = [(name, old.get(name), new[name]) for name in _FIXED if old.get(name) != new[name]]
    differing = [entry for entry in differing if entry[0] != "engine" or None not in entry]
    for name, facts in new["benchmarks"].items():
        if name in old["benchmarks"] and old["benchmarks"][name]["sha256"] != facts["sha256"]:
            differing.append((f"the file of {name}", old["benchmarks"][name]["sha256"][:12], facts["sha256"][:12]))
    if differing:
        name, before, now = differing[0]
        raise UserError(
            f"{out} holds samples with another protocol ({name}: {before} there, {now} now): choose another out=, or "
            f"remove {out}"
        )


def save(out: Path, new: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``new``, joined with what ``out`` has already; returns what was written.

    Benchmarks are added to those that are there, and more problems count; the first engine and date stay.
    """
    old = recorded(out) or {}
    benchmarks = dict(old.get("benchmarks", {}))
    for name, facts in new["benchmarks"].items():
        problems = max(facts["problems"], benchmarks.get(name, facts)["problems"])
        benchmarks[name] = {**facts, "problems": problems}
    joined = {
        **new,
        "benchmarks": benchmarks,
        "engine": new["engine"] or old.get("engine"),
        "date": old.get("date") or new["date"],
    }
    write_json(out / NAME, joined, indent=2)
    return joined
