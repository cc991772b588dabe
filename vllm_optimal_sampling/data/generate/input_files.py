"""Rows of one file: JSON lines, JSON arrays, CSV, TSV and parquet.

What cannot be read as a row is passed on as a row with an error, in its place, and reading goes on.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.input_row import InputRow, Source

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""What a file's name may end with; all but parquet also with `.gz` behind."""

PARQUET_BATCH = 256
JSON_CHUNK = 1 << 20
BLANKS = re.compile(r"[ \t\r\n]*")
SEPARATORS = re.compile(r"[ \t\r\n,]*")


def suffix_of(path: Path) -> str | None:
    """Which of `SUFFIXES` a file's name ends with, None for any other file."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def open_file(path: Path, name: str) -> Source:
    """A file as a source of rows.

    Args:
        path: the file.
        name: what its rows call it.

    Raises:
        SettingsError: its name has none of `SUFFIXES`, it cannot be read, or it is text in UTF-16 or UTF-32.

    """
    kinds: dict[str | None, type[Lines] | type[Table] | type[JsonFile] | type[Parquet]] = {
        ".jsonl": Lines,
        ".ndjson": Lines,
        ".json": JsonFile,
        ".csv": Table,
        ".tsv": Table,
        ".parquet": Parquet,
    }
    kind = kinds.get(suffix_of(path))
    if kind is None:
        raise SettingsError(
            f"input={str(path)!r} is not a kind of file that is read; its name has to end with {', '.join(SUFFIXES)}"
        )
    try:
        with _open(path) as file:
            start = file.read(4096)
    except (OSError, EOFError, zlib.error) as error:
        raise SettingsError(f"input={str(path)!r} cannot be read: {error}") from None
    if kind is not Parquet and (encoding := _wide_encoding(start)):
        raise SettingsError(
            f"input={str(path)!r} is not UTF-8 and looks like {encoding}; save it as UTF-8, for instance with "
            f"iconv -f {encoding} -t UTF-8"
        )
    return kind(path, name)


def _wide_encoding(start: bytes) -> str | None:
    """UTF-16 or UTF-32 where a text begins like one: a byte order mark, or zeros between the letters."""
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or max(start[::2].count(0), start[1::2].count(0)) > len(start) // 4:
        return "UTF-16"
    return None


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


class Lines:
    """JSON lines: one object on each."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def rows(self) -> Iterator[InputRow]:
        with _open(self.path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row_of_json(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, self.name, number)

    def count(self) -> int | None:
        with _open(self.path) as file:
            return sum(1 for line in file if line.strip())


def _row_of_json(line: bytes, source: str, number: int) -> InputRow:
    try:
        row = json.loads(_decoded(line), parse_constant=_no_number, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return InputRow(source, number, None, _bad_bytes(error))
    except json.JSONDecodeError as error:
        return InputRow(source, number, None, f"not JSON: {error.msg} at column {error.colno}")
    except UnicodeEncodeError:
        return InputRow(source, number, None, "not text: half a surrogate pair is escaped in it")
    except (ValueError, RecursionError) as error:
        return InputRow(source, number, None, f"not JSON: {error}")
    return _checked(row, source, number)


def _checked(row: object, source: str, number: int, unit: str = "line") -> InputRow:
    if not isinstance(row, dict):
        return InputRow(source, number, None, f"not an object with columns but {type(row).__name__}", unit)
    return InputRow(source, number, row, unit=unit)


def _decoded(line: bytes) -> str:
    text = line.decode("utf-8").rstrip("\r\n")
    if "\\ud" in text or "\\uD" in text:
        # Half a surrogate pair is valid JSON and no text: no tokenizer and no UTF-8 file takes it.
        json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "strict")
    return text


def _bad_bytes(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


class JsonFile:
    """A JSON array of objects, read piece by piece; or JSON lines under this name."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def rows(self) -> Iterator[InputRow]:
        with _open(self.path) as file:
            start = file.read(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")
        if start.startswith(b"{"):
            yield from Lines(self.path, self.name).rows()
        else:
            yield from self._elements()

    def _elements(self) -> Iterator[InputRow]:
        decoder = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_object)
        with _open(self.path) as binary, io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape") as file:
            text = _Window(file)
            text.skip(BLANKS)
            if text.peek() != "[":
                yield InputRow(self.name, text.line, None, "not JSON: neither an array of objects nor JSON lines")
                return
            text.take(text.start + 1)
            while True:
                text.skip(SEPARATORS)
                if text.peek() == "]":
                    text.take(text.start + 1)
                    text.skip(BLANKS)
                    if text.peek():
                        yield InputRow(self.name, text.line, None, "not JSON: there is something behind the array")
                    return
                try:
                    value, end = decoder.raw_decode(text.text, text.start)
                except (ValueError, RecursionError) as error:
                    if text.grow():
                        continue
                    # Where one element is broken, nothing tells where the next one begins.
                    reason = f"not JSON, and the rest of the file is not read: {error}"
                    yield InputRow(self.name, text.line, None, reason)
                    return
                if end == len(text.text) and text.grow():
                    continue  # a number may go on
                line = text.line
                try:
                    text.take(end).encode()
                    yield _checked(value, self.name, line)
                except UnicodeEncodeError:
                    yield InputRow(self.name, line, None, "not UTF-8")

    def count(self) -> int | None:
        return None


class _Window:
    """The part of a text file that is being read: `text` from `start` on, which is in line `line`."""

    def __init__(self, file: io.TextIOBase) -> None:
        self.file, self.text, self.start, self.line = file, "", 0, 1

    def grow(self) -> bool:
        """Read more of the file, at least as much as is held, so that a long element costs no quadratic time."""
        chunk = self.file.read(max(JSON_CHUNK, len(self.text) - self.start))
        self.text = self.text[self.start :] + chunk
        self.start = 0
        return bool(chunk)

    def take(self, end: int) -> str:
        taken = self.text[self.start : end]
        self.line += taken.count("\n")
        self.start = end
        return taken

    def skip(self, separators: re.Pattern[str]) -> None:
        while True:
            found = separators.match(self.text, self.start)
            assert found is not None, "the pattern matches nothing too"
            self.take(found.end())
            if self.start < len(self.text) or not self.grow():
                return

    def peek(self) -> str:
        return self.text[self.start : self.start + 1]


class Table:
    """CSV, or TSV, with the columns' names in the first line."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.delimiter = "\t" if suffix_of(path) == ".tsv" else ","

    def rows(self) -> Iterator[InputRow]:
        csv.field_size_limit((1 << 31) - 1)  # of a cell; 128 KiB by default
        with _open(self.path) as binary, io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=self.delimiter, strict=True)
            names: list[str] | None = None
            while True:
                number = reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield InputRow(self.name, number, None, f"not CSV: {error}")
                    continue
                if names is None:
                    names = self._checked_names(cells)
                elif cells:
                    yield self._row(names, cells, number)

    def _checked_names(self, names: list[str]) -> list[str]:
        twice = next((name for name in names if name and names.count(name) > 1), None)
        if twice is not None:
            raise SettingsError(f"input={str(self.path)!r} names column {twice!r} twice in its first line; rename one")
        return names

    def likely_separator(self) -> str | None:
        """What seems to separate the columns where the first line has one column alone; None where nothing does."""
        with _open(self.path) as file:
            line = file.readline(1 << 16).decode("utf-8-sig", "replace")
        if self.delimiter in line:
            return None
        return next((mark for mark in ";\t|," if mark in line.rstrip()), None)

    def _row(self, names: list[str], cells: list[str], number: int) -> InputRow:
        if len(cells) != len(names):
            return InputRow(
                self.name, number, None, f"has {len(cells)} cells, and the first line names {len(names)} columns"
            )
        for cell in cells:
            if not cell.isascii():
                try:
                    cell.encode()
                except UnicodeEncodeError as error:
                    byte = ord(error.object[error.start]) & 0xFF
                    return InputRow(self.name, number, None, f"not UTF-8: byte 0x{byte:02x}")
        return InputRow(self.name, number, dict(zip(names, cells, strict=True)))

    def count(self) -> int | None:
        return sum(1 for _ in self.rows())


class Parquet:
    """A parquet file, batch by batch."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def _open(self) -> Any:
        try:
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise SettingsError(
                f"input={str(self.path)!r} needs pyarrow; install it: pip install 'vllm-optimal-sampling[data]'"
            ) from None
        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise SettingsError(f"input={str(self.path)!r} is not a parquet file: {error}") from None

    def rows(self) -> Iterator[InputRow]:
        number = 0
        with self._open() as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield InputRow(self.name, number, row, unit="row")

    def count(self) -> int | None:
        with self._open() as file:
            return int(file.metadata.num_rows)
