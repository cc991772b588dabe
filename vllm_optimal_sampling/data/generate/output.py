"""The output file: rows appended as they finish, and read again to resume.

Each row is one line, written with one call, so that a process killed at any moment leaves whole lines and at most a torn
last one, which the next run cuts off and draws again. The file is synced to disk every few seconds and at the end: a
machine that loses power loses at most those seconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm_optimal_sampling.data.generate.errors import RunError, SettingsError
from vllm_optimal_sampling.data.generate.identity import check_same
from vllm_optimal_sampling.data.generate.output_row import input_digest, line_of

SYNC_SECONDS = 5.0
WHOLE_ROW = -1
"""In place of a sample's number: the row itself is an error."""


class FinishedSamples:
    """Which samples the output has, and which ids the input has used so far.

    A temporary SQLite database on disk: a set of Python strings would take some 150 bytes of memory for each sample.
    """

    def __init__(self) -> None:
        # An empty name is a file without a name, which ends with the connection.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.executescript(
            "PRAGMA synchronous=OFF; PRAGMA journal_mode=OFF; PRAGMA cache_size=-16384;"
            "CREATE TABLE finished (id TEXT, sample INT, PRIMARY KEY (id, sample)) WITHOUT ROWID;"
            "CREATE TABLE used (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID;"
            "CREATE TABLE sampled (id TEXT PRIMARY KEY, digest BLOB) WITHOUT ROWID;"
            "BEGIN;"
        )
        self.count = 0

    def add(self, custom_id: str, sample: int | None, digest: bytes | None = None) -> bool:
        """Note a sample of the output, or None for a row that is an error. Whether it is new.

        Args:
            custom_id: the row's.
            sample: its number.
            digest: of the row of the input that it was drawn for (`input_digest`).

        """
        if digest is not None:
            self._database.execute("INSERT OR IGNORE INTO sampled VALUES (?, ?)", (custom_id, digest))
        sample = WHOLE_ROW if sample is None else sample
        new = self._database.execute("INSERT OR IGNORE INTO finished VALUES (?, ?)", (custom_id, sample)).rowcount > 0
        self.count += new
        return new

    def missing(self, custom_id: str, num_samples: int) -> list[int]:
        """The samples of a row that are still to be drawn; none where the row is an error."""
        found = {
            sample for (sample,) in self._database.execute("SELECT sample FROM finished WHERE id = ?", (custom_id,))
        }
        return [] if WHOLE_ROW in found else [sample for sample in range(num_samples) if sample not in found]

    @property
    def num_sampled_rows(self) -> int:
        """How many rows of the input the output has samples of."""
        ((number,),) = self._database.execute("SELECT COUNT(*) FROM sampled")
        return int(number)

    def take_digest(self, custom_id: str) -> bytes | None:
        """The digest of the row of the input that the samples with this id were drawn for; None the second time."""
        found = self._database.execute("DELETE FROM sampled WHERE id = ? RETURNING digest", (custom_id,)).fetchone()
        return None if found is None else bytes(found[0])

    def use(self, custom_id: str, place: str) -> str | None:
        """Claim an id for a row of the input. The place of the row that has it already, None where it is new."""
        if self._database.execute("INSERT OR IGNORE INTO used VALUES (?, ?)", (custom_id, place)).rowcount > 0:
            return None
        ((earlier,),) = self._database.execute("SELECT place FROM used WHERE id = ?", (custom_id,))
        return str(earlier)

    def close(self) -> None:
        """Free its file."""
        self._database.close()


class Output:
    """The rows' file, held by one process at a time.

    Args:
        path: the JSONL file; its folder is made.
        sidecar: where the identity of the run is kept.
        identity: of this run, see `identity_of`.
        versions: what the rows are drawn with, for the sidecar; not compared.
        retry_errors: forget the rows with errors, so that they are drawn again.

    Raises:
        SettingsError: the file cannot be written, another process writes it, it was begun with other settings, or is
            not such a file.

    """

    def __init__(
        self,
        path: Path,
        sidecar: Path,
        identity: Mapping[str, Any],
        versions: Mapping[str, str],
        retry_errors: bool = False,
    ) -> None:
        self.path = path
        self.num_errors = self.num_samples = 0
        self._file = self._held()
        try:
            has_rows = self.path.stat().st_size > 0
            try:
                self._check_identity(sidecar, identity, versions, has_rows)
            except SettingsError:
                if not sidecar.exists() or not self._has_errors_alone():
                    raise
                # Nothing was drawn with the earlier settings, so that there is nothing to mix.
                self._drop_errors()
                self._check_identity(sidecar, identity, versions, has_rows=False)
            self._cut_torn_line()
            if retry_errors and has_rows:
                self._drop_errors()
            self.finished = FinishedSamples()
            for row in self.rows():
                failed = row.get("error") is not None
                self.num_errors += failed
                self.num_samples += not failed
                digest = None if failed else input_digest(row)
                if not self.finished.add(row["custom_id"], row["sample"], digest):
                    raise SettingsError(
                        f"{self.path} has sample {row['sample']} of {row['custom_id']!r} twice; it was not written by "
                        "one run after another, give another --output"
                    )
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def _held(self) -> Any:
        """The file, held by this process."""
        while True:
            file = self._locked(self.path)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            file.close()  # before it was locked, another run put a new file in its place

    def _locked(self, path: Path) -> Any:
        """A file, opened to append to it, with the lock of one process."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise IsADirectoryError(errno.EISDIR, "it is not an ordinary file")
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise SettingsError(
                f"output {self.path} cannot be written: {error.strerror}; give --output the name of a file in a folder "
                "where you may write"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise SettingsError(f"another run is writing {self.path}; wait for it, or give another --output") from None
        except OSError:  # a file system without locks, such as some NFS
            pass
        return file

    def _check_identity(
        self, sidecar: Path, identity: Mapping[str, Any], versions: Mapping[str, str], has_rows: bool
    ) -> None:
        if has_rows:
            try:
                earlier = json.loads(sidecar.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise SettingsError(
                    f"{self.path} has rows, and {sidecar.name}, which says how they were drawn, cannot be read "
                    f"({error}); give another --output"
                ) from None
            earlier.pop("versions", None)
            check_same(earlier, identity, sidecar)
            return
        text = json.dumps({**identity, "versions": versions}, ensure_ascii=False, indent=1)
        try:
            _replace(sidecar, text.encode())
        except OSError as error:
            raise SettingsError(f"{sidecar} cannot be written: {error.strerror}; give another --output") from None

    def _has_errors_alone(self) -> bool:
        """Whether the file has rows with errors and no sample."""
        self._cut_torn_line()
        return all(row.get("error") is not None for row in self.rows())

    def _cut_torn_line(self) -> None:
        """Cut off what is behind the last whole line. After a loss of power that line may have the length, not the text."""
        with self.path.open("rb") as file:
            size = position = file.seek(0, os.SEEK_END)
            end = 0  # behind the last newline
            while position > 0:
                position = max(0, position - (1 << 16))
                file.seek(position)
                found = file.read(min(1 << 16, size - position)).rfind(b"\n")
                if found >= 0:
                    end = position + found + 1
                    break
        if end < size:
            self._file.truncate(end)
        last = self._last_line()
        if last is not None and not last[1]:
            self._file.truncate(last[0])

    def _last_line(self) -> tuple[int, bool] | None:
        """Where the last line begins, and whether it is a row."""
        begin = None
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            position, tail = size, b""
            while position > 0:
                step = min(1 << 16, position)
                position -= step
                file.seek(position)
                tail = file.read(step) + tail
                begin = tail.rfind(b"\n", 0, len(tail) - 1)
                if begin >= 0:
                    return position + begin + 1, _row_of(tail[begin + 1 :]) is not None
            return None if size == 0 else (0, _row_of(tail) is not None)

    def _drop_errors(self) -> None:
        """Write the file again without the rows that have an error, and put it in place, locked already, in one step."""
        temporary = self.path.with_name(self.path.name + ".part")
        temporary.unlink(missing_ok=True)  # of a run that was killed
        new = self._locked(temporary)
        try:
            buffered = io.BufferedWriter(new)
            for line, row in self._lines():
                if row.get("error") is None:
                    buffered.write(line)
            buffered.detach()  # which writes what it still has
            os.fsync(new.fileno())
            temporary.replace(self.path)
        except BaseException:
            new.close()
            raise
        self._file.close()
        self._file = new

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are written, in their order.

        Raises:
            SettingsError: a line is no row.

        """
        return (row for _, row in self._lines())

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each line as it stands, and its row."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                row = _row_of(line)
                if row is None:
                    raise SettingsError(
                        f"{self.path} line {number} is not a row that this command wrote; give another --output, or take "
                        "the line out"
                    )
                yield line, row

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
            RunError: the disk takes no more.

        """
        line = line_of(row)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written")
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error}; make room and run the same command again"
            ) from None

    def sync(self) -> None:
        """Have the rows on disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and let another run have the file."""
        with contextlib.suppress(OSError):  # already reported by `write`
            self.sync()
        self._file.close()
        self.finished.close()


def _row_of(line: bytes) -> dict[str, Any] | None:
    """The row that a line is; None where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("custom_id"), str) and "sample" in row else None


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
