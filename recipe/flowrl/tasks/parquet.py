"""Rows of verl's parquet schema, and files that appear complete or not at all."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.flowrl.common.files import replacing


def prompt_row(
    source: str, ability: str, prompt: str, ground_truth: str, index: int, split: str, **extra: Any
) -> dict[str, Any]:
    """One prompt for RL: a user turn, scored by rule against ``ground_truth``; ``extra`` joins ``extra_info``."""
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": prompt}],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"index": index, "split": split, **extra},
    }


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write ``rows`` to ``path``, through a temporary name beside it. Raises ValueError if there are none."""
    rows = list(rows)
    if not rows:
        raise ValueError(f"{path}: no rows to write")
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    return path
