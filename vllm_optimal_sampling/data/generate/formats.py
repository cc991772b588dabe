"""The finished rows as parquet or as a Hugging Face data set, made of the JSONL file in batches.

Rows with an error have no completion to train on. They stay in the JSONL file and are left out here.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_optimal_sampling.data.generate.errors import RunError, SettingsError
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.data.rows import BATCH_ROWS
from vllm_optimal_sampling.data.tables import TableError, write_table


def check_available(settings: Settings) -> None:
    """Find out before the run whether its end can be written.

    Raises:
        SettingsError: a package is missing, or what is at the output's place was not written by a run and would be lost.

    """
    output = Path(settings.output)
    if settings.format != "jsonl" and output.exists() and not settings.rows_path.exists():
        raise SettingsError(
            f"output {output} is there already and was not written by this command, which would replace it (there is no "
            f"{settings.rows_path.name} beside it); give another --output"
        )
    try:
        if settings.format != "jsonl":
            import pyarrow.parquet  # noqa: F401
        if settings.format == "hf":
            import datasets  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"format={settings.format!r} needs {error.name}; install it: pip install 'vllm-optimal-sampling[data]'"
        ) from None


def write(settings: Settings) -> None:
    """Make `settings.output` of the rows; what was there is replaced in one step, once the new one is whole.

    Raises:
        RunError: a column has values that no one type holds, or the disk takes no more.

    """
    output = Path(settings.output)
    part = output.with_name(output.name + ".part")
    if settings.format == "parquet":
        try:
            _write_parquet(settings.rows_path, part)
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)
        return
    import datasets

    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        table = Path(folder) / "rows.parquet"
        _write_parquet(settings.rows_path, table)
        data = datasets.Dataset.from_parquet(str(table), cache_dir=folder, keep_in_memory=False)
        data.save_to_disk(str(part))
        del data
    if output.exists():
        shutil.rmtree(output)
    part.replace(output)


def _batches(rows: Path) -> Iterator[list[dict[str, Any]]]:
    with rows.open("rb") as file:
        good = (row for row in map(json.loads, file) if row["error"] is None)
        while batch := list(itertools.islice(good, BATCH_ROWS)):
            yield batch


def _write_parquet(rows: Path, path: Path) -> None:
    try:
        write_table(lambda: _batches(rows), path)
    except TableError as error:
        raise RunError(
            f"{rows} cannot become a table: {error}. The rows themselves are whole; mend the column, or take --format jsonl"
        ) from None
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}; make room and run the same command again") from None
