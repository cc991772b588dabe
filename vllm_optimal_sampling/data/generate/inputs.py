"""Rows of a data set as a stream: files, folders of them, and Hugging Face data sets.

Nothing is read ahead of what is asked for, so that a run of a million rows begins at once and in little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.input_files import SUFFIXES, open_file, suffix_of
from vllm_optimal_sampling.data.generate.input_row import InputRow, Source
from vllm_optimal_sampling.data.rows import SETTINGS_SUFFIX, settings_path


def open_inputs(
    inputs: Sequence[str],
    split: str | None = None,
    config: str | None = None,
    output: Path | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> list[Source]:
    """The sources that `--input` names, checked to be there.

    Args:
        inputs: files, folders, folders written by `datasets.save_to_disk`, or names of data sets of the hub.
        split: which split of a data set.
        config: which configuration of a data set of the hub.
        output: where this run writes, which is left out of a folder, with all files whose names begin like it.
        say: told, in a sentence, which files of a folder are left out.

    Raises:
        SettingsError: there is no such file, it is given twice or is the output, a folder holds none, or a data set
            needs a split.

    """
    sources: list[Source] = []
    opened: dict[Path, str] = {}
    for given in inputs:
        path = Path(given)
        name = path.name if len(inputs) == 1 else given
        if path.is_dir() and not _is_data_set(path):
            prefix = "" if len(inputs) == 1 else f"{given.rstrip('/')}/"
            files = {file: prefix + file.relative_to(path).as_posix() for file in _files_of(path, given, output, say)}
        else:
            files = {path: name}
        for file, file_name in files.items():
            if (key := file.resolve()) in opened:
                raise SettingsError(
                    f"input={given!r} has {file_name!r}, and so has input={opened[key]!r}; give it once"
                )
            opened[key] = given
            if file.is_dir():
                sources.append(DataSet(given, _load_from_disk(given, split), name))
            elif file.is_file():
                if output is not None and _is_own(file, output):
                    raise SettingsError(f"input={given!r} is this run's output or belongs to it; give another --output")
                sources.append(open_file(file, file_name))
            elif suffix_of(path) is not None or given.startswith((".", "/", "~")) or given.count("/") > 1:
                raise SettingsError(f"input={given!r} does not exist; give a file, a folder, or a data set of the hub")
            else:
                sources.append(DataSet(given, _load_by_name(given, split, config), f"{given}:{split}"))
    for option, value in (("split", split), ("config_name", config)):
        if value is not None and not any(isinstance(source, DataSet) for source in sources):
            raise SettingsError(f"{option}={value!r} is of a Hugging Face data set, and the input is files; drop it")
    return sources


def _is_data_set(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _files_of(folder: Path, given: str, output: Path | None, say: Callable[[str], object]) -> Iterator[Path]:
    """A folder's files with rows, by name; hidden ones and what this command wrote are left out, and named."""
    found = sorted(file for file in folder.rglob("*") if file.is_file() and suffix_of(file) is not None)
    left_out = {}
    for file in found:
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            left_out[file] = "hidden"
        elif output is not None and _is_own(file, output):
            left_out[file] = "this run's own output"
        elif _was_written_by_a_run(file):
            left_out[file] = "written by this command"
        elif any(_is_data_set(parent) for parent in file.parents if parent.is_relative_to(folder)):
            left_out[file] = "part of a saved data set"
    files = [file for file in found if file not in left_out]
    for reason in sorted(set(left_out.values())):
        names = [file.relative_to(folder).as_posix() for file, why in left_out.items() if why == reason]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        say(f"not read as input ({reason}): {shown}")
    if not files:
        raise SettingsError(
            f"input={given!r} has no file that ends with one of {', '.join(SUFFIXES)}"
            + (" and is not hidden or written by this command" if left_out else "")
        )
    yield from files


def _is_own(file: Path, output: Path) -> bool:
    """Whether a file is the output, is inside it, or has a name that begins like it: its settings, its lines."""
    file, output = file.resolve(), output.resolve()
    return file.is_relative_to(output) or (file.parent == output.parent and file.name.startswith(f"{output.name}."))


def _was_written_by_a_run(file: Path) -> bool:
    """Whether settings of a run stand beside a file (see `settings_path`), or beside the lines it is made of."""
    lines = file.with_name(f"{file.name}.jsonl")
    return file.name.endswith(SETTINGS_SUFFIX) or any(settings_path(path).exists() for path in (file, lines))


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
        raise SettingsError(
            f"input={given!r} is not a file here, and no data set of this name could be loaded: {error}"
        ) from None


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
