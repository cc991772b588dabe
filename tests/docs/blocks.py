"""The fenced code blocks of docs/, and the few words that are exchanged before a test runs them.

What is exchanged, and nothing else: the two models' names for the example pair's folders, the server's address for that
of the test's server, `vllm` and `optimal-sampling` for the modules behind them in this interpreter. Where an engine is
started, the options of `support.servers.SMALL_SERVER` are added, and where a trainer is, that it is to run on a CPU.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from support.example_pair import TEACHER, THETA
from support.servers import SMALL_SERVER, VLLM

DOCS = Path(__file__).resolve().parents[2] / "docs"
MODELS = {"Qwen/Qwen2.5-3B-Instruct": TEACHER, "Qwen/Qwen2.5-1.5B-Instruct": THETA}
COMMANDS = {"vllm": VLLM, "optimal-sampling": [sys.executable, "-m", "vllm_optimal_sampling"]}
ADDRESS = "http://localhost:8000"

FENCE = re.compile(r"(?:^<!-- test: (?P<mark>[a-z ]+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)

SMALL_ARGUMENTS = {name.replace("-", "_"): value for name, value in SMALL_SERVER.items()}


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        mark: what a comment before it says: `full` (run in the long matrix only), or nothing.
    """

    name: str
    language: str
    text: str
    mark: str | None

    def prepared(self, address: str = ADDRESS) -> str:
        """The text with the words exchanged."""
        text = self.text.replace(ADDRESS, address)
        for name, folder in MODELS.items():
            text = text.replace(name, folder)
        if self.language == "bash":
            for name, command in COMMANDS.items():
                text = re.sub(f"^{name} ", f"{shlex.join(command)} ", text, flags=re.M)
        return text

    def starting_an_engine(self) -> str:
        """The text of a Python block, with the small options after the teacher's name."""
        text = self.prepared()
        own = {"gpu_memory_utilization"} if "gpu_memory_utilization=" in text else set()
        small = {name: value for name, value in SMALL_ARGUMENTS.items() if name not in own}
        text = text.replace(f'"{TEACHER}", model_theta', f'"{TEACHER}", **{small!r}, model_theta')
        text = re.sub(f'^( +(?:model_teacher=)?"{TEACHER}",)$', rf"\1 **{small!r},", text, flags=re.M)
        return re.sub(r"(GRPO|Distillation)Config\(\n", r"\g<0>use_cpu=True, bf16=False,\n", text)


def blocks(document: str, *languages: str) -> list[Block]:
    """The blocks of a document in the given languages, in their order."""
    text = (DOCS / document).read_text()
    return [
        Block(
            f"{document}:{text[: match.start('text')].count(chr(10))}",
            match["language"],
            match["text"],
            match["mark"],
        )
        for match in FENCE.finditer(text)
        if match["language"] in languages
    ]
