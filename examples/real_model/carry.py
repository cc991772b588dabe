"""The model and the problems to a machine without internet, in parts that each fit a call.

    python examples/real_model/carry.py pack FOLDER PROBLEMS        FOLDER/part-00, ... and FOLDER/parts.json
    python examples/real_model/carry.py unpack FOLDER TARGET        there, once for each part that came

A call there may carry some of the parts. TARGET keeps those that came. With the last it is complete: it has the GGUF file,
the problems (`problems/`) and the package gguf (`site/`, for PYTHONPATH). Only Python's own modules are needed there.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
import tarfile
from importlib.metadata import distribution
from pathlib import Path

PART_MIB = 50
LIST = "parts.json"


def pack(folder: Path, files: dict[str, Path], part_bytes: int) -> list[Path]:
    """The parts of an archive with these files and folders, by their names there."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name, path in files.items():
            archive.add(path, name)
    content = packed.getbuffer()
    folder.mkdir(parents=True, exist_ok=True)
    parts, sums = [], {}
    for number, first in enumerate(range(0, len(content), part_bytes)):
        part = folder / f"part-{number:02d}"
        part.write_bytes(content[first : first + part_bytes])
        parts.append(part)
        sums[part.name] = hashlib.sha256(part.read_bytes()).hexdigest()
    (folder / LIST).write_text(json.dumps(sums, indent=1) + "\n")
    return parts


def unpack(folder: Path, target: Path) -> list[str]:
    """Take the parts that are in the folder; the names of those that are still missing. With none the target is complete.

    Raises:
        ValueError: a part is not what was packed.
    """
    sums: dict[str, str] = json.loads((folder / LIST).read_text())
    kept = target / "parts"
    kept.mkdir(parents=True, exist_ok=True)
    for name, wanted in sums.items():
        if not (folder / name).exists():
            continue
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
            raise ValueError(f"{name} is not what {LIST} says; carry it again")
        shutil.copyfile(folder / name, kept / name)
    missing = [name for name in sums if not (kept / name).exists()]
    if not missing:
        joined = io.BytesIO(b"".join((kept / name).read_bytes() for name in sums))
        with tarfile.open(fileobj=joined, mode="r:gz") as archive:
            # Python before 3.11.4 has no filters.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(target)
    return missing


def gguf_files() -> dict[str, Path]:
    """The package gguf with its metadata, by which transformers knows its version."""
    listed = distribution("gguf").files or []
    return {f"site/{file}": Path(file.locate()) for file in listed if ".." not in file.parts and file.suffix != ".pyc"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pack")
    one.add_argument("folder", type=Path)
    one.add_argument("problems", type=Path, help="folder of problem_files.py")
    one.add_argument("--part-mib", type=int, default=PART_MIB)
    other = commands.add_parser("unpack")
    other.add_argument("folder", type=Path)
    other.add_argument("target", type=Path)
    given = parser.parse_args()
    if given.command == "unpack":
        missing = unpack(given.folder, given.target)
        print(f"still missing: {', '.join(missing)}" if missing else f"complete: {given.target}")
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import smollm2

    model = smollm2.packaged()
    if model is None:
        raise SystemExit(smollm2.MISSING)
    files = {model.name: model, "problems": given.problems} | gguf_files()
    for part in pack(given.folder, files, given.part_mib << 20):
        print(f"{part}: {part.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
