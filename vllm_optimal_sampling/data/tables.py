"""Rows as a parquet file, with types that hold every row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Batches = Callable[[], Iterable[list[dict[str, Any]]]]
"""Gives the rows, some at a time, and anew with each call."""


class TableError(ValueError):
    """Rows cannot become a table; the message says which column is in the way, and of what kind it is."""


def write_table(batches: Batches, path: Path) -> None:
    """Write rows to a parquet file, in two passes: the first finds the types, the second writes.

    A column that is null or missing in the first rows gets the type that it has in later ones.

    Args:
        batches: the rows.
        path: of the file.

    Raises:
        TableError: a column has values that no one type holds, or for which parquet has none.
    """
    import pyarrow as pa
    import pyarrow.parquet

    schema = pa.schema([])
    for rows in batches():
        for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
            try:
                field = pa.field(name, pa.array([row.get(name) for row in rows]).type)
                schema = pa.unify_schemas([schema, pa.schema([field])], promote_options="permissive")
            except (pa.ArrowException, TypeError, OverflowError) as error:
                raise TableError(f"column {name!r} has values that no one type holds ({_in_one_line(error)})") from None
    try:
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for rows in batches():
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise TableError(_in_one_line(error).removesuffix(".")) from None


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
