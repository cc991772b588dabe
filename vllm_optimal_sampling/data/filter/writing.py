"""Writing the rows that are kept, beside their place until all are there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from vllm_optimal_sampling.data.filter.rules import Rules
from vllm_optimal_sampling.data.rows import (
    BATCH_ROWS,
    RowsError,
    batches_of,
    files_of,
    import_arrow,
    read_rows,
    schema_of,
)
from vllm_optimal_sampling.data.tables import TableError, write_table

COLUMNAR = (".parquet", ".arrow")


def filter_rows(source: Path, output: Path, rules: Rules) -> None:
    """Write the rows of `source` that the rules keep to `output`, which is put in place when it is complete.

    JSON lines are copied as they are; parquet keeps its schema. Between the two, rows are converted.

    Args:
        source: as `read_rows` takes it.
        output: a file that ends in .jsonl or .parquet.
        rules: they are asked about every row, in order.

    Raises:
        RowsError: the input cannot be read.
        ColumnError: no row has a column that a rule needs.
    """
    columnar = [file.suffix in COLUMNAR for file in files_of(source)]
    rules.look_for_best(row.values for row in read_rows(source))
    with put_in_place(output) as partial:
        if output.suffix != ".parquet":
            _write_lines(source, partial, rules)
        elif all(columnar):
            _write_same_schema(source, partial, rules)
        else:
            lines = partial.with_name(f"{partial.name}.jsonl")
            try:
                _write_lines(source, lines, rules)
                _lines_to_parquet(lines, partial)
            finally:
                lines.unlink(missing_ok=True)
        rules.check_columns()


@contextmanager
def put_in_place(output: Path) -> Iterator[Path]:
    """A file to write beside `output`, which takes its place at the end, and is gone if that is not reached."""
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _write_lines(source: Path, partial: Path, rules: Rules) -> None:
    with partial.open("wb") as file:
        for row in read_rows(source):
            if not rules.keeps(row.values):
                continue
            if row.line is not None:
                file.write(row.line if row.line.endswith(b"\n") else row.line + b"\n")
            else:
                file.write(json.dumps(_plain(row.values), default=str).encode() + b"\n")


def _plain(value: Any) -> Any:
    """A parquet value as JSON knows it: what is no number becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _write_same_schema(source: Path, partial: Path, rules: Rules) -> None:
    files = files_of(source)
    arrow = import_arrow(source)
    try:
        schema = arrow.unify_schemas([schema_of(file) for file in files], promote_options="permissive")
    except arrow.ArrowException as error:
        raise _no_common_schema(error) from None
    with arrow.parquet.ParquetWriter(partial, schema) as writer:
        for file in files:
            for batch in batches_of(file):
                kept = batch.filter(arrow.array([rules.keeps(row) for row in batch.to_pylist()], arrow.bool_()))
                if len(kept):
                    table = arrow.Table.from_batches([kept])
                    # Columns that this file lacks are null.
                    columns = {
                        field.name: table[field.name].cast(field.type)
                        if field.name in table.column_names
                        else arrow.nulls(len(table), field.type)
                        for field in schema
                    }
                    writer.write_table(arrow.table(columns, schema=schema))


def _lines_to_parquet(lines: Path, partial: Path) -> None:
    import_arrow(lines)
    try:
        write_table(lambda: _chunks(lines), partial)
    except TableError as error:
        raise _no_common_schema(error) from None


def _no_common_schema(error: Exception) -> RowsError:
    reason = " ".join(str(error).split())
    return RowsError(f"the rows have no common parquet schema ({reason}); write them as .jsonl")


def _chunks(lines: Path) -> Iterator[list[dict[str, Any]]]:
    rows = (row.values for row in read_rows(lines) if row.values is not None)
    while chunk := list(islice(rows, BATCH_ROWS)):
        yield chunk
