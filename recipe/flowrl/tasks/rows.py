"""Rows of other people's data files, parquet or JSON, one at a time: a row, or the reason why it is none."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.tasks.task import Malformed

_BATCH = 256
_GZIP = b"\x1f\x8b"
_DIGITS = 4300
"""Of an integer: Python refuses to read more, since the time grows with their square."""


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Malformed]]:
    """Number, from 0, and content of each row of a .parquet, .json or .jsonl file, gzipped or not, in any case streamed
    unless it is one JSON array. Blank lines aren't counted.

    JSON is UTF-8, with or without a byte-order mark. NaN and infinities are floats; an integer of more digits than
    Python reads stays text.

    Raises:
        UserError: the file is damaged or in another encoding; names the row where it shows.
    """
    read = _parquet_rows if path.name.endswith(".parquet") else _json_rows
    index = -1
    try:
        for index, item in enumerate(read(path)):  # noqa: B007
            if isinstance(item, dict | Malformed):
                yield index, item
            else:
                yield index, Malformed("not a JSON object")
    except (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, zlib.error, RecursionError) as error:
        place = f"{path}, after row {index}," if index >= 0 else f"{path}"
        raise UserError(f"{place} can't be read ({brief(error)}): get it again, as UTF-8 if it is text") from error


def brief(error: BaseException) -> str:
    """An error in one short line."""
    return f"{type(error).__name__}: {shown(str(error)[:400])[:120]}".removesuffix(": ")


def shown(text: str) -> str:
    """``text`` on one line, without what a terminal or a file would take for something else."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH):
            yield from _exact(batch).to_pylist()


def _exact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """``batch`` with single-precision columns as the decimals that they stand for: 0.1, not 0.10000000149011612."""
    for index, field in enumerate(batch.schema):
        if pa.types.is_float32(field.type):
            column = pa.array(
                [None if item is None else float(str(np.float32(item))) for item in batch[index].to_pylist()]
            )
            batch = batch.set_column(index, field.name, column.cast(pa.float64()))
    return batch


def _json_rows(path: Path) -> Iterator[Any]:
    with _opened(path) as file:
        if (encoding := json.detect_encoding(file.peek(4)[:4])) not in ("utf-8", "utf-8-sig"):
            raise ValueError(f"it is {encoding}")
        # Of bytes: at line feeds and carriage returns.
        lines: Iterator[bytes] = (line for chunk in file for line in chunk.splitlines())
        if path.name.removesuffix(".gz").endswith(".json"):  # an array, or lines under another name
            content = file.read()
            if _text(content).lstrip().startswith("["):
                yield from _loads(_text(content))
                return
            lines = iter(content.splitlines())
        yield from (_parsed(_text(line)) for line in lines if line.strip())


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader | gzip.GzipFile]:
    """The file's content, unpacked if it is gzipped, whatever its name says."""
    with open(path, "rb") as file:
        if file.peek(2)[:2] == _GZIP:
            with gzip.open(file) as unpacked:
                yield unpacked
        else:
            yield file


def _text(line: bytes) -> str:
    return line.removeprefix(codecs.BOM_UTF8).decode("utf-8")  # a file may be several, each with its mark


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else digits)


def _parsed(line: str) -> Any:
    try:
        return _loads(line)
    except (ValueError, RecursionError):
        return None
