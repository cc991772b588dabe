"""What an update of theta takes: seconds and bytes of `update_theta`, for an engine in this process and in one of its own.

    python benchmarks/weight_updates.py                        the example pair
    python benchmarks/weight_updates.py --pair random-0.5b     theta of half a billion parameters, about 8 GiB of memory

The trainer's parameters are in memory, in --dtype as the engine's. Seconds are by the clock: part of an update is the other
process's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pairs import EXAMPLE, num_parameters, read_config, write_shapes
from recording import RESULTS, Spread, header, set_cpu_environment, write

set_cpu_environment()

ENGINES = {"this process": "0", "a process of its own": "1"}
"""Where the engine is, and vLLM's switch for it."""
PAIRS = ("example", "random-0.5b")


def models_of(pair: str, folder: Path) -> tuple[str, str]:
    """Teacher and theta. Of the random pair both have the shape of half a billion parameters, in two folders."""
    if pair == "example":
        return str(EXAMPLE / "teacher"), str(EXAMPLE / "theta")
    teacher, _ = write_shapes("random-0.5b-0.15b", folder)
    return teacher, str(shutil.copytree(teacher, folder / "copy"))


def measure(teacher: str, theta: str, dtype: str, repeats: int) -> dict[str, Any]:
    """The seconds of each update in an engine that runs where the environment says."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from vllm_optimal_sampling import OptimalSampler

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(theta), dtype=getattr(torch, dtype))
    seconds = []
    with OptimalSampler(
        teacher,
        theta,
        load_format="dummy",
        dtype=dtype,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        kv_cache_memory_bytes=1 << 28,
    ) as sampler:
        for number in range(repeats + 1):
            started = time.perf_counter()
            sampler.update_theta(model)
            if number:  # the first one builds what is compared
                seconds.append(time.perf_counter() - started)
            sampler.generate(["one"], ["two"], max_tokens=2)
    parameters = list(model.parameters())
    return {
        "seconds": seconds,
        "bytes": sum(parameter.nbytes for parameter in parameters),
        "tensors": len(parameters),
    }


def in_a_process(engine: str, models: tuple[str, str], dtype: str, repeats: int) -> dict[str, Any]:
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": ENGINES[engine]}
    given = json.dumps([*models, dtype, repeats])
    done = subprocess.run(
        [sys.executable, __file__, "--measure", given], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{engine}: {min(found['seconds']):.3f} s at best, {found['bytes']} bytes", flush=True)
    return found | {"seconds": Spread.of(found["seconds"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, default="example")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*json.loads(given.measure))))
        return
    result = header("weight-updates")
    with tempfile.TemporaryDirectory() as folder:
        models = models_of(given.pair, Path(folder))
        result |= {
            "pair": {"name": given.pair, "theta_parameters": num_parameters(read_config(models[1]))},
            "settings": {"dtype": given.dtype, "repeats": given.repeats},
            "engines": {engine: in_a_process(engine, models, given.dtype, given.repeats) for engine in ENGINES},
        }
    write(given.output or RESULTS / f"weight-updates-{given.pair}.json", result)


if __name__ == "__main__":
    main()
