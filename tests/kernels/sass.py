"""What is in a kernel's loops, read from its SASS."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);")
BACK = re.compile(r"BRA(?:\.\w+)*\s+(?:!?U?P\w+,\s*)?0x([0-9a-f]+)")
PREDICATE = re.compile(r"^@!?U?P\w+\s+")


class Loop(NamedTuple):
    """A loop's body."""

    instructions: int
    counts: Counter[str]
    """By name with its modifiers, such as `LDG.E.128`."""


def dump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def loops(cubin: bytes) -> list[Loop]:
    """Every loop, the innermost ones of them, in the order in which they end."""
    instructions = [
        (int(place, 16), PREDICATE.sub("", text)) for place, text in INSTRUCTION.findall(dump(cubin, "-sass"))
    ]
    ranges = []
    for place, text in instructions:
        back = BACK.match(text)
        if back and int(back[1], 16) < place:
            ranges.append((int(back[1], 16), place))
    inner = [
        (begin, end)
        for begin, end in ranges
        if not any(begin <= other[0] and other[1] <= end for other in ranges if other != (begin, end))
    ]
    found = []
    for begin, end in inner:
        body = [text for place, text in instructions if begin <= place <= end]
        found.append(Loop(len(body), Counter(text.split()[0] for text in body)))
    return found
