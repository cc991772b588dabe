"""Which pair is measured, and with what engines: the arguments that the end-to-end benchmarks share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.base import Settings
from pairs import EXAMPLE, SHAPES, num_parameters, read_config, write_shapes

PROMPT_ROOM = 192  # the longest prompt has about 100 tokens, and theta's slots need a block more


@dataclass(frozen=True)
class Selection:
    """A pair whose folders are there, and how engines are to run it."""

    name: str
    teacher: str
    theta: str
    load_format: str
    dtype: str
    eager: bool
    inductor: bool
    temperature: float
    acceptance: tuple[float, ...]

    @property
    def compilation(self) -> str:
        """How the models' code is run, as results name it."""
        if self.eager:
            return "eager"
        return "vLLM's defaults (Inductor)" if self.inductor else "graphs, no Inductor"

    @property
    def slug(self) -> str:
        """The name as a part of a file's name."""
        return re.sub("[^a-z0-9.]+", "-", self.name.lower()).strip("-")

    def describe(self) -> dict[str, Any]:
        """The pair as a result names it."""
        return {
            "name": self.name,
            "weights": "made up" if self.load_format == "dummy" else "trained",
            "teacher_parameters": num_parameters(read_config(self.teacher)),
            "theta_parameters": num_parameters(read_config(self.theta)),
        }


def add_selection(parser: argparse.ArgumentParser, is_cpu_build: bool) -> None:
    parser.add_argument("--pair", choices=("example", *SHAPES), default="example", help="a pair by name, or:")
    parser.add_argument("--teacher", help="name or folder")
    parser.add_argument("--theta", help="name or folder")
    parser.add_argument("--acceptance", type=float, nargs="+", default=[], help="accept drafts at these rates, 0 to 1")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--dtype", default="float32" if is_cpu_build else "bfloat16")
    parser.add_argument("--eager", action="store_true", default=is_cpu_build, help="no CUDA graphs")
    parser.add_argument("--inductor", action="store_true", help="vLLM's default compilation; else graphs without it")
    parser.add_argument("--gate", type=Path, help="a file to wait for once all engines are started")
    parser.add_argument("--logs", type=Path, help="folder for what the engines print")


def select(parser: argparse.ArgumentParser, given: argparse.Namespace, folder: Path) -> Selection:
    """Check the arguments and find the models; shapes without weights are written below `folder`."""
    if (given.teacher is None) != (given.theta is None):
        parser.error("give both --teacher and --theta, or neither")
    if not all(0 < rate < 1 for rate in given.acceptance):
        parser.error(f"--acceptance {given.acceptance} has a rate outside (0, 1)")
    name, load_format = given.pair, "auto"
    if given.teacher is not None:
        teacher, theta = local_folder(given.teacher), local_folder(given.theta)
        name = f"{given.teacher} with {given.theta}"
    elif given.pair == "example":
        teacher, theta = str(EXAMPLE / "teacher"), str(EXAMPLE / "theta")
    else:
        if not given.acceptance:
            parser.error(f"the pair {given.pair} has no weights, so its acceptance means nothing: give --acceptance")
        teacher, theta = write_shapes(given.pair, folder)
        load_format = "dummy"
    return Selection(
        name,
        teacher,
        theta,
        load_format,
        given.dtype,
        given.eager,
        given.inductor,
        given.temperature,
        tuple(given.acceptance),
    )


def local_folder(model: str) -> str:
    """A model's folder; one of the hub is downloaded, as vLLM would."""
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download

    return snapshot_download(model)


def engines_at(chosen: Selection, batch: int, max_tokens: int, drafts: int) -> Settings:
    """Settings with room for `batch` requests of `max_tokens` tokens, with `drafts` drafts a round, 0 too."""
    length = max_tokens + PROMPT_ROOM
    position_limit = min(read_config(model)["max_position_embeddings"] for model in (chosen.teacher, chosen.theta))
    if length > position_limit:
        raise ValueError(
            f"max_tokens={max_tokens} with {PROMPT_ROOM} for the prompt goes beyond {position_limit} positions"
        )
    return Settings(
        teacher=chosen.teacher,
        theta=chosen.theta,
        max_num_seqs=batch,
        max_model_len=length,
        kv_cache_bytes=kv_cache_bytes(
            (chosen.teacher, chosen.theta), batch, length, 4 if chosen.dtype == "float32" else 2
        ),
        num_speculative_tokens=max(1, drafts),
        schedule=None if drafts else ((1, batch, 0),),
        temperature=chosen.temperature,
        dtype=chosen.dtype,
        enforce_eager=chosen.eager,
        inductor=chosen.inductor,
        load_format=chosen.load_format,
        synthetic_acceptance=bool(chosen.acceptance),
    )


def kv_cache_bytes(models: Sequence[str], batch: int, length: int, dtype_bytes: int) -> int:
    """Room for every request at full length in all models' caches, and a tenth more."""
    total = 0
    for model in models:
        config = read_config(model)
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        total += 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * dtype_bytes
    return max(1 << 26, int(1.1 * total * batch * (length + 64)))
