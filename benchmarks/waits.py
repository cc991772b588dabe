"""How often the host waits for the device in a step: calls counted by torch's profiler over 100 decode steps.

    python benchmarks/waits.py --pair qwen2.5-3b-1.5b --acceptance 0.9

The teacher alone and vLLM's own draft-model decoding are counted beside optimal sampling: what they wait for is vLLM's
(a step ends by waiting for its tokens), and only what comes on top is this package's. On a machine without a GPU the
counts are of scalars read from tensors, and only show that the benchmark runs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from recording import RESULTS, header, set_cpu_environment, write
from selection import add_selection, engines_at, select

IS_CPU_BUILD = set_cpu_environment()

from methods.process import MethodProcess  # noqa: E402
from prompts import make_prompts  # noqa: E402

METHODS = ("teacher", "draft_model", "optimal")
SKIPPED = 5  # steps with prompts in them, and the first ones after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_selection(parser, IS_CPU_BUILD)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100, help="profiled steps")
    parser.add_argument("--num-speculative-tokens", type=int, default=4)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        chosen = select(parser, given, Path(folder))
        tokens = (SKIPPED + given.steps + 2) * (given.num_speculative_tokens + 1)  # if every draft is accepted
        settings = engines_at(chosen, given.batch, tokens, given.num_speculative_tokens)
        result = header("waits") | {
            "pair": chosen.describe(),
            "settings": {
                "batch": given.batch,
                "steps": given.steps,
                "enforce_eager": given.eager,
                "dtype": given.dtype,
            },
            "per_step": {},
        }
        prompts = make_prompts(AutoTokenizer.from_pretrained(chosen.teacher), given.batch, seed=1)
        for method in METHODS:
            process = MethodProcess(method, settings, (given.logs or Path(folder)) / f"waits-{method}.log")
            try:
                if chosen.acceptance and method != "teacher":
                    process.call("set_acceptance", chosen.acceptance[0])
                process.generate(prompts, 8, seed=0)
                result["per_step"][method] = process.call("count_waits", prompts, tokens, SKIPPED, given.steps)
            finally:
                process.close()
        names = sorted({name for counts in result["per_step"].values() for name in counts})
        print(f"{'calls per step':<34}" + "".join(f"{method:>14}" for method in METHODS))
        for name in names:
            print(f"{name:<34}" + "".join(f"{result['per_step'][method].get(name, 0):>14.2f}" for method in METHODS))
        write(given.output or RESULTS / f"waits-{chosen.slug}.json", result)


if __name__ == "__main__":
    main()
