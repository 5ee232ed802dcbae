"""The data files: there, readable, not empty, and in verl's schema."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.rules import guess
from recipe.flowrl.tasks.manifest import check_file
from recipe.flowrl.tasks.rows import read_rows, shown
from recipe.flowrl.tasks.task import Malformed

_HEAD = 256
"""Rows at the start of a parquet file that are always looked at; see :func:`_doubtful`."""


_KEYS = ("data.train_files", "data.val_files")


def check_data(config: DictConfig, yet_to_be_made: Path | None = None) -> None:
    """Check ``data.train_files`` and ``data.val_files``.

    Args:
        config: of the run.
        yet_to_be_made: a directory in which files may still be missing.

    Raises:
        UserError: a file is missing, unreadable, empty, not the one of its manifest, or lacks a column; a row isn't as
            verl reads it; or the training files have fewer rows than ``data.train_batch_size``.
    """
    rows = {key: _check_files(config, key, yet_to_be_made) for key in _KEYS}
    batch, available = config.data.train_batch_size, rows["data.train_files"]
    limit = config.data.get("train_max_samples", -1)
    if available is not None and limit > 0:
        available = min(available, limit)
    if available is not None and available < batch:
        raise UserError(
            f"data.train_batch_size={batch}, but data.train_files has {available} rows to train on: "
            f"set it to {available} or less"
        )


def rows_by_source(config: DictConfig) -> dict[str, tuple[str, Callable[[], dict[str, Any]]]]:
    """Every data source of every row of every file -> where its first row is, and what reads it; training files first.

    Without those of :func:`not_looked_at`. Raises UserError as :func:`check_data`.
    """
    found: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {}
    if config.data.custom_cls.path:
        return found
    for key in _KEYS:
        for path in (Path(name).expanduser() for name in _names(config, key) if not _is_remote(name)):
            for index, source, row in _sources(path):
                if source not in found:
                    found[source] = f"{key}: {path}, row {index}", row
    return found


def not_looked_at(config: DictConfig) -> str | None:
    """What of the data can't be known before the run, as the option and its value; None if there is no such thing."""
    if config.data.custom_cls.path:
        return f"data.custom_cls.path={config.data.custom_cls.path}"
    remote = (f"{key}: {name}" for key in _KEYS for name in _names(config, key) if _is_remote(name))
    return next(remote, None)


def _sources(path: Path) -> Iterator[tuple[int, str, Callable[[], dict[str, Any]]]]:
    """Number and data source of each row, and what reads the row. Of parquet only the one column is read."""
    if path.suffix != ".parquet":
        for index, row in read_rows(path):
            assert not isinstance(row, Malformed)  # check_data comes first
            yield index, row["data_source"], partial(dict, row)
        return
    start = 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, columns=["data_source"]).column(0)
            for index, source in enumerate(column.to_pylist()):
                yield start + index, source, partial(_row_of, path, group, index)
            start += len(column)


def _row_of(path: Path, group: int, index: int) -> dict[str, Any]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_HEAD, row_groups=[group]):
            if index < len(batch):
                return batch.slice(index, 1).to_pylist()[0]
            index -= len(batch)
    raise LookupError(f"row group {group} ends before row {index}")


def _names(config: DictConfig, key: str) -> list[str]:
    names = config.data[key.removeprefix("data.")]
    return [names] if isinstance(names, str) else list(names or [])


def _is_remote(name: str) -> bool:
    return "://" in name


def _check_files(config: DictConfig, key: str, yet_to_be_made: Path | None) -> int | None:
    """Check the files of one option; returns their rows, None if that can't be known here."""
    names = _names(config, key)
    if not names:
        raise UserError(
            f"{key}: no file given: set it to a parquet file, or choose an experiment (experiment=countdown_cpu)"
        )
    rows: list[int | None] = []
    for name in names:
        path = Path(name).expanduser()
        if _is_remote(name) or (yet_to_be_made and path.is_relative_to(yet_to_be_made)):
            rows.append(None)
            continue
        if not path.is_file():
            what = "is a directory, not a file" if path.is_dir() else "doesn't exist"
            raise UserError(
                f"{key}: {name} {what}: give a parquet file, make the paper's "
                "(python -m recipe.flowrl prepare), "
                "or choose an experiment that makes its own (experiment=countdown_cpu)"
            )
        if path.suffix not in (".parquet", ".json", ".jsonl") and not config.data.custom_cls.path:
            raise UserError(f"{key}: {name}: verl reads .parquet, .json and .jsonl files: convert it")
        if path.stat().st_size == 0:
            raise UserError(f"{key}: {name} is an empty file (0 bytes): make it again")
        check_file(path)
        rows.append(_check_rows(path, key, config))
    known = [number for number in rows if number is not None]
    return sum(known) if len(known) == len(rows) else None


def _check_rows(path: Path, key: str, config: DictConfig) -> int | None:
    """Check one file; returns its rows, None where a class of the user's reads another format."""
    if path.suffix == ".parquet":
        return _check_parquet(path, key, config)
    if config.data.custom_cls.path:
        return None
    count = 0
    for index, row in read_rows(path):
        problem = str(row) if isinstance(row, Malformed) else _problem(row, config.data.prompt_key)
        if problem:
            raise UserError(f"{key}: {path}, row {index}: {problem}")
        count += 1
    if not count:
        raise UserError(f"{key}: {path} has no rows: make it again")
    return count


def _check_parquet(path: Path, key: str, config: DictConfig) -> int:
    where = f"{key}: {path}"
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise UserError(f"{where} has no rows: make it again")
            if not config.data.custom_cls.path:
                _check_columns(file, where, config.data.prompt_key)
                for index, row in _doubtful(file, config.data.prompt_key):
                    if problem := _problem(row, config.data.prompt_key):
                        raise UserError(f"{where}, row {index}: {problem}")
            return file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{where} can't be read as parquet ({_reason(error)}): make it again") from error


def _check_columns(file: pq.ParquetFile, where: str, prompt_key: str) -> None:
    columns = file.schema_arrow.names
    for column in ("data_source", prompt_key, "reward_model"):
        if column not in columns:
            raise UserError(
                f"{where} has no column {column!r}{guess(column, columns)}; it has {', '.join(columns)}. "
                "verl's schema: data_source, prompt, reward_model.ground_truth"
            )


def _doubtful(file: pq.ParquetFile, prompt_key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and needed columns of the rows that may be wrong.

    Values in a column have one type, so the first rows show it; a value that is missing further on shows in the
    counts that the file has of each part.
    """
    needed, start = ("data_source", prompt_key, "reward_model"), 0
    for group in range(file.num_row_groups):
        part = file.metadata.row_group(group)
        leaves = (part.column(index) for index in range(part.num_columns))
        counts = [_nulls(leaf) for leaf in leaves if _is_needed(leaf.path_in_schema, prompt_key)]
        whole = None in counts or any(counts)
        if whole or start < _HEAD:
            rows = (row for batch in file.iter_batches(_HEAD, [group], needed) for row in batch.to_pylist())
            yield from enumerate(rows if whole else itertools.islice(rows, _HEAD - start), start)
        start += part.num_rows


def _is_needed(leaf: str, prompt_key: str) -> bool:
    name, _, below = leaf.partition(".")
    parts = below.split(".")
    return (
        name == "data_source"
        or (name == prompt_key and parts[-1] in ("role", "content", name, ""))
        or (name == "reward_model" and parts[0] == "ground_truth")
    )


def _nulls(leaf: pq.ColumnChunkMetaData) -> int | None:
    statistics = leaf.statistics
    return statistics.null_count if statistics is not None and statistics.has_null_count else None


def _problem(row: dict[str, Any], prompt_key: str) -> str | None:
    """What is wrong with a row, if anything."""
    if not isinstance(source := row.get("data_source"), str):
        return f"data_source is {_brief(source)}; it must be text"
    prompt = row.get(prompt_key)
    wanted = f"{prompt_key} must be a list of messages [{{role: user, content: ...}}]"
    if not isinstance(prompt, list) or not prompt:
        return f"{prompt_key} is {_brief(prompt)}; {wanted}"
    for message in prompt:
        if not isinstance(message, dict) or not message.get("role") or message.get("content") is None:
            return f"{prompt_key} has the message {_brief(message)}; {wanted}"
    reward_model = row.get("reward_model")
    if not isinstance(reward_model, dict) or reward_model.get("ground_truth") is None:
        return f"reward_model is {_brief(reward_model)}; it must be {{style: rule, ground_truth: ...}}"
    return None


def _brief(value: Any) -> str:
    text = shown(repr(value)[:80])
    return text if len(text) <= 60 else f"{text[:57]}..."


def _reason(error: Exception) -> str:
    return shown(str(error)[:400]).rstrip(".")[:120] if str(error) else type(error).__name__
