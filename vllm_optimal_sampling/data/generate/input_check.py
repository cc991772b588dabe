"""Whether a run's input has the columns that it needs: asked before a model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from vllm_optimal_sampling.data.generate.errors import RowError, SettingsError
from vllm_optimal_sampling.data.generate.input_files import Table
from vllm_optimal_sampling.data.generate.input_row import InputRow, Source
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.params import closest

FIRST_ROWS = 1000
"""So many rows of each file are looked at for a column that the first ones lack."""

ID_COLUMN = "custom_id"
"""A column of this name, which OpenAI's batch files have, is the rows' id where no other is named."""


def check_input(sources: Sequence[Source], settings: Settings, say: Callable[[str], object]) -> Settings:
    """Look at the first rows of the input for what the settings need.

    Args:
        sources: the input.
        settings: the run's.
        say: told, in a sentence, what follows from the input.

    Returns:
        The settings, with `id_column` where the input has a column `custom_id` and none was named.

    Raises:
        SettingsError: the input has no rows, no row has a column that is needed, or no row can be used.

    """
    templates = settings.templates()
    needed = _needed_columns(settings)
    columns: set[str] = set()
    num_rows, usable, first_error = 0, False, ""
    for row in _first_rows(sources, settings.limit):
        num_rows += 1
        if row.columns is None:
            first_error = first_error or f"{row.place}: {row.error}"
        else:
            columns.update(row.columns)
            if not usable:
                try:
                    templates.render(row.columns)
                    usable = True
                except RowError as error:
                    first_error = first_error or f"{row.place}: {error}"
        if usable and needed.keys() <= columns:
            break
    if not num_rows:
        names = ", ".join(source.name for source in sources)
        header = " behind the header" if all(isinstance(source, Table) for source in sources) else ""
        raise SettingsError(f"the input has no rows: {names} {'has' if len(sources) == 1 else 'have'} none{header}")
    hint = _separator_hint(sources)
    for column, option in needed.items():
        if columns and column not in columns:
            raise SettingsError(
                f"no row has a column {column!r}, which {option} names{closest(column, columns) or '.'} "
                f"The columns are {_listed(columns)}{hint}"
            )
    if not usable:
        raise SettingsError(f"none of the first {num_rows} rows can be used. {first_error}{hint}")
    if settings.id_column is None and ID_COLUMN in columns:
        say(f"the column {ID_COLUMN} is the rows' id; --id-column names another one")
        return dataclasses.replace(settings, id_column=ID_COLUMN)
    return settings


def _needed_columns(settings: Settings) -> dict[str, str]:
    """Columns that have to be there, with the option that names each."""
    templates = settings.templates()
    needed: dict[str, str] = {}
    for name, columns in templates.columns.items():
        for column in sorted(columns.names - columns.optional - templates.variables):
            needed.setdefault(column, f"{name}_template")
    if settings.chat_column is not None:
        needed[settings.chat_column] = "--chat-column"
    if settings.id_column is not None:
        needed[settings.id_column] = "--id-column"
    return needed | dict.fromkeys(settings.privileged or (), "--privileged")


def _first_rows(sources: Sequence[Source], limit: int | None) -> Iterator[InputRow]:
    return islice((row for source in sources for row in islice(source.rows(), FIRST_ROWS)), limit)


def _separator_hint(sources: Sequence[Source]) -> str:
    for source in sources:
        if isinstance(source, Table) and (mark := source.likely_separator()) is not None:
            return (
                f". The first line of {source.name} is one column: is {mark!r} its separator? "
                "A .csv has commas, a .tsv has tabs"
            )
    return ""


def _listed(columns: set[str]) -> str:
    shown = [repr(name) for name in sorted(columns)[:20]]
    return ", ".join(shown) + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")
