"""Reading the rows that `optimal-sampling generate` writes, one at a time: JSON lines, parquet, Arrow, folders of them.

A row that cannot be read does not end the reading: it comes with its reason and place. Memory is bounded by one row of
JSON lines, or one batch of parquet. pyarrow is imported only where a file needs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".arrow")
"""The kinds of file that are read; `.arrow` is what `datasets` saves to disk."""
BATCH_ROWS = 256
"""Rows of parquet that are in memory at a time."""
MAX_LINE_BYTES = 1 << 27
"""A longer line is no row: a sample of 131,072 tokens with its record has a tenth of it."""


class RowsError(ValueError):
    """The input cannot be read at all; the message is one sentence for the user."""


@dataclass(frozen=True)
class SampledRow:
    """One row as it was read.

    Attributes:
        values: the columns; None where the row cannot be read.
        problem: why it cannot, else None.
        is_torn: whether it is the broken last line of a file, which a killed writer leaves behind.
        file: the file it is from.
        number: the line of the file, or the row of a parquet or Arrow file, counted from 1.
        line: the bytes of a JSON line with its newline; None for parquet and Arrow.
    """

    values: dict[str, Any] | None
    problem: str | None
    is_torn: bool
    file: Path
    number: int
    line: bytes | None

    @property
    def place(self) -> str:
        """Where it stands, as compilers say it: `rows.jsonl:17`."""
        return f"{self.file.name}:{self.number}"


def completion_text(completion: object) -> str:
    """The text of a row's completion: as it is, or what the messages of a chat say; "" where there is none."""
    if isinstance(completion, list):
        contents = (message.get("content") for message in completion if isinstance(message, dict))
        return "\n".join(content for content in contents if isinstance(content, str))
    return "" if completion is None else str(completion)


def files_of(path: Path) -> list[Path]:
    """The files that hold the rows of `path`: itself, or the files of a folder and the folders in it, by name.

    Raises:
        RowsError: there is no such file or folder, it is of another kind, or the folder holds none that is read.
    """
    kinds = ", ".join(SUFFIXES)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        files = [file for file in files if not file.name.startswith(".")]
        if not files:
            raise RowsError(f"the folder {path} holds no file of rows ({kinds})")
        return files
    if not path.exists():
        raise RowsError(f"there is no file {path}")
    if path.suffix not in SUFFIXES:
        raise RowsError(f"{path} is not a kind of file that is read; its name has to end in one of {kinds}")
    return [path]


def read_rows(path: Path) -> Iterator[SampledRow]:
    """The rows of a file or of a folder of files, in order.

    Raises:
        RowsError: see `files_of`; also where a parquet or Arrow file is none, or pyarrow is missing.
    """
    for file in files_of(path):
        yield from _read_lines(file) if file.suffix in (".jsonl", ".ndjson") else _read_batches(file)


def _read_lines(file: Path) -> Iterator[SampledRow]:
    try:
        stream = file.open("rb")
    except OSError as error:
        raise RowsError(f"{file} cannot be read: {error.strerror}") from None
    with stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield SampledRow(None, f"the line is longer than {MAX_LINE_BYTES:,} bytes", False, file, number, None)
            elif line.strip():
                values, problem = _parse(line)
                is_torn = problem is not None and not line.endswith(b"\n")
                yield SampledRow(values, problem, is_torn, file, number, line)


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """The object of a line, or why there is none."""
    try:
        values = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The standard library is some five times slower, takes NaN and lone surrogates, and says what is wrong.
        try:
            values = json.loads(line)
        except UnicodeDecodeError:
            return None, "the line is not UTF-8"
        except RecursionError:
            return None, "the line is nested too deep"
        except json.JSONDecodeError as error:
            return None, f"the line is not JSON ({error.msg} at character {error.pos})"
    return (values, None) if isinstance(values, dict) else (None, "the line is not a JSON object")


def _read_batches(file: Path) -> Iterator[SampledRow]:
    number = 0
    for batch in batches_of(file):
        for values in batch.to_pylist():
            number += 1
            yield SampledRow(values, None, False, file, number, None)


def batches_of(file: Path) -> Iterator[Any]:
    """The `pyarrow.RecordBatch`es of a parquet or Arrow file, of at most `BATCH_ROWS` rows.

    Raises:
        RowsError: the file is none of that kind, or pyarrow is missing.
    """
    arrow = import_arrow(file)
    try:
        if file.suffix == ".parquet":
            with arrow.parquet.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(batch_size=BATCH_ROWS)
        else:
            with arrow.memory_map(str(file)) as source, arrow.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield from (batch.slice(first, BATCH_ROWS) for first in range(0, len(batch), BATCH_ROWS))
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise RowsError(f"{file} cannot be read as {file.suffix[1:]}: {reason}") from None


def schema_of(file: Path) -> Any:
    """The `pyarrow.Schema` of a parquet or Arrow file.

    Raises:
        RowsError: as `batches_of`.
    """
    arrow = import_arrow(file)
    try:
        if file.suffix == ".parquet":
            return arrow.parquet.read_schema(file)
        with arrow.memory_map(str(file)) as source, arrow.ipc.open_stream(source) as stream:
            return stream.schema
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise RowsError(f"{file} cannot be read as {file.suffix[1:]}: {reason}") from None


def import_arrow(file: Path) -> Any:
    """The module pyarrow.

    Raises:
        RowsError: it is not installed, which `file` needs.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise RowsError(f"{file} needs pyarrow: pip install 'vllm-optimal-sampling[data]'") from None
    return pyarrow


SETTINGS_SUFFIX = ".settings.json"


def settings_path(path: Path) -> Path:
    """Where the settings of the run that wrote `path` stand: `rows.jsonl.settings.json`."""
    return path.with_name(path.name + SETTINGS_SUFFIX)


def read_settings(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The settings of the run that wrote `path`, and one sentence for each thing that is wrong with them.

    For a folder without settings of its own: those of the first file in it that has any.
    """
    own = settings_path(path)
    candidates = [own]
    if path.is_dir() and not own.exists():
        candidates = sorted(path.glob(f"*{SETTINGS_SUFFIX}"))
    settings: dict[str, Any] | None = None
    notices = []
    for candidate in candidates:
        try:
            found = json.loads(candidate.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            notices.append(f"The settings in {candidate.name} cannot be read.")
            continue
        if not isinstance(found, dict):
            notices.append(f"The settings in {candidate.name} are not a JSON object.")
        elif settings is None:
            settings = found
        elif differing := sorted(key for key in {*settings, *found} if settings.get(key) != found.get(key)):
            notices.append(f"The settings in {candidate.name} differ from those shown in {', '.join(differing[:8])}.")
    return settings, notices
