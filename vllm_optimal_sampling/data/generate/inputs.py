"""Rows of a data set as a stream: JSONL, JSON, CSV, parquet, folders of them, and Hugging Face data sets.

Nothing is read ahead of what is asked for, so that a run of a million rows begins at once and in little memory. What
cannot be read as a row is passed on as a row with an error, in its place, and reading goes on.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from vllm_optimal_sampling.data.generate.errors import SettingsError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""What a file's name may end with; all but parquet also with `.gz` behind."""

PARQUET_BATCH = 256
JSON_CHUNK = 1 << 20
BLANKS = re.compile(r"[ \t\r\n]*")
SEPARATORS = re.compile(r"[ \t\r\n,]*")


@dataclass(frozen=True)
class InputRow:
    """A row of the input, or the place of one that cannot be read."""

    source: str
    """The file, by its name in the input; or the data set."""
    line: int
    """In text files the line that the row begins on, else its number; from 1."""
    columns: Mapping[str, Any] | None
    """None where the row cannot be read."""
    error: str | None = None
    """Why it cannot."""
    unit: str = "line"

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"{self.source} {self.unit} {self.line}"

    @property
    def position(self) -> str:
        """The same as an id, the same in every run over the same input."""
        return f"{self.source}:{self.line}"


class Source(Protocol):
    """One file or data set."""

    name: str

    def rows(self) -> Iterator[InputRow]:
        """Its rows in their order."""

    def count(self) -> int | None:
        """How many there are, None where only reading all of them would tell."""


def open_inputs(inputs: Sequence[str], split: str | None = None, config: str | None = None) -> list[Source]:
    """The sources that `--input` names, checked to be there.

    Args:
        inputs: files, folders, folders written by `datasets.save_to_disk`, or names of data sets of the hub.
        split: which split of a data set.
        config: which configuration of a data set of the hub.

    Raises:
        SettingsError: there is no such file, a folder holds none, or a data set needs a split.

    """
    sources: list[Source] = []
    for given in inputs:
        path = Path(given)
        if path.is_file():
            sources.append(_file(path, path.name if len(inputs) == 1 else given))
        elif path.is_dir():
            if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
                sources.append(DataSet(given, _load_from_disk(given, split), path.name))
                continue
            files = sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file) is not None)
            if not files:
                raise SettingsError(f"input={given!r} has no file that ends with one of {', '.join(SUFFIXES)}")
            prefix = "" if len(inputs) == 1 else f"{given.rstrip('/')}/"
            sources += [_file(file, prefix + file.relative_to(path).as_posix()) for file in files]
        elif _suffix(path) is not None or given.startswith((".", "/", "~")) or given.count("/") > 1:
            raise SettingsError(f"input={given!r} does not exist; give a file, a folder, or a data set of the hub")
        else:
            sources.append(DataSet(given, _load_by_name(given, split, config), f"{given}:{split}"))
    return sources


def _suffix(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _file(path: Path, name: str) -> Source:
    kinds: dict[str | None, type[Lines] | type[Table] | type[JsonFile] | type[Parquet]] = {
        ".jsonl": Lines,
        ".ndjson": Lines,
        ".json": JsonFile,
        ".csv": Table,
        ".tsv": Table,
        ".parquet": Parquet,
    }
    kind = kinds.get(_suffix(path))
    if kind is None:
        raise SettingsError(f"input={str(path)!r} is of no known kind; its name has to end with {', '.join(SUFFIXES)}")
    return kind(path, name)


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
        row = json.loads(_decoded(line), parse_constant=_no_number)
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


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


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
        decoder = json.JSONDecoder(parse_constant=_no_number)
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
        self.delimiter = "\t" if _suffix(path) == ".tsv" else ","

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
                    names = cells
                elif cells:
                    yield self._row(names, cells, number)

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


class DataSet:
    """A Hugging Face data set: memory-mapped from disk, or streamed from the hub."""

    def __init__(self, given: str, data: Any, name: str) -> None:
        self.given, self.data, self.name = given, data, name

    def rows(self) -> Iterator[InputRow]:
        for number, row in enumerate(self.data, 1):
            yield InputRow(self.name, number, row, unit="row")

    def count(self) -> int | None:
        return len(self.data) if hasattr(self.data, "__len__") else None


def _datasets(given: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise SettingsError(
            f"input={given!r} needs the package datasets; install it: pip install 'vllm-optimal-sampling[data]'"
        ) from None
    return datasets


def _load_from_disk(given: str, split: str | None) -> Any:
    try:
        data = _datasets(given).load_from_disk(given)
    except (OSError, ValueError) as error:
        raise SettingsError(f"input={given!r} cannot be read: {error}") from None
    return _one_split(given, data, split)


def _load_by_name(given: str, split: str | None, config: str | None) -> Any:
    if split is None:
        raise SettingsError(f"input={given!r} is a data set of the hub, if anything; give its split, such as train")
    try:
        return _datasets(given).load_dataset(given, config, split=split, streaming=True)
    except Exception as error:  # whatever the hub, the network and the data set's files have to say
        raise SettingsError(f"input={given!r} is no file here, and no data set could be loaded: {error}") from None


def _one_split(given: str, data: Any, split: str | None) -> Any:
    if not isinstance(data, dict):
        return data
    if split is None and len(data) == 1:
        (data,) = data.values()
        return data
    if split not in data:
        raise SettingsError(f"split={split!r} is not one of {', '.join(data)}, which input={given!r} has")
    return data[split]


def read(sources: Iterable[Source], shard: tuple[int, int] = (0, 1), limit: int | None = None) -> Iterator[InputRow]:
    """Rows of all sources, one after another.

    Args:
        sources: from `open_inputs`.
        shard: (i, n): only rows i, i + n, i + 2n, ... from 0.
        limit: of the whole input only so many first rows, before they are divided into shards.

    """
    rows = (row for source in sources for row in source.rows())
    return islice(rows, shard[0], limit, shard[1])


def count(sources: Iterable[Source], shard: tuple[int, int] = (0, 1), limit: int | None = None) -> int | None:
    """How many rows `read` will give, None where that is not known without reading them."""
    total = 0
    for source in sources:
        here = source.count()
        if here is None:
            return None
        total += here
    if limit is not None:
        total = min(total, limit)
    return len(range(shard[0], total, shard[1]))
