"""Is the teacher good enough to learn from? Its pass rate has to be 60 % and 1.5 times theta's.

    python examples/real_model/gate.py              SmolLM2 as its own teacher, a small sample; results/gate.json

Theta reads the problem. As its own teacher the same model also reads the answer (`told`), or the worked solution (`shown`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from real_model import PROBLEMS, RESULTS, tasks  # first: it finds the modules that follow

# isort: split
import measure
import recording
import smollm2
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

RATE = 0.6
RATIO = 1.5
WAYS: dict[str, Callable[[tasks.Problem], tasks.Messages]] = {
    "theta": tasks.theta_messages,
    "told": tasks.told_messages,
    "shown": tasks.shown_messages,
}


@torch.inference_mode()
def texts_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[tasks.Messages], max_tokens: int
) -> list[str]:
    """A text of each chat, drawn at temperature 1."""
    rows = [measure.render(tokenizer, messages) for messages in prompts]
    width = max(map(len, rows))
    pad = tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    drawn = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, pad_token_id=pad, eos_token_id=pad,
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
    )  # fmt: skip
    return tokenizer.batch_decode(drawn[:, width:], skip_special_tokens=True)


def counts(texts: Sequence[str], problems: Sequence[tasks.Problem]) -> dict[str, Any]:
    """How many texts are right and sound, with Wilson's interval of 95 % for the share of right ones."""
    pairs = list(zip(texts, problems, strict=True))
    right = sum(tasks.is_right(*pair) for pair in pairs)
    return {
        "problems": len(pairs),
        "right": right,
        "interval_95": measure.interval(right, len(pairs)),
        "sound": sum(tasks.is_sound(*pair) for pair in pairs),
    }


def passes(theta: Mapping[str, Any], teacher: Mapping[str, Any]) -> bool:
    """The gate, of two models' counts."""
    is_good = teacher["right"] >= RATE * teacher["problems"]
    is_better = teacher["right"] * theta["problems"] >= RATIO * theta["right"] * teacher["problems"]
    return is_good and is_better


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="the others stay as the file has them"
    )
    parser.add_argument("--each", type=int, default=16, help="problems of each task")
    parser.add_argument("--tasks", nargs="+", choices=tasks.TASKS, default=["leg_counting", "chain_sum"])
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    file = smollm2.packaged()
    if file is None:
        raise SystemExit(smollm2.MISSING)
    path = RESULTS / "gate.json"
    settings = {"seed": 0, "temperature": 1.0, "max_tokens": given.max_tokens, "dtype": given.dtype}
    result = recording.header("real-model-gate") | {"settings": settings, "ways": {}}
    if path.exists():
        result = json.loads(path.read_text())
        if result["settings"] != settings:
            raise SystemExit(f"{path} has the settings {result['settings']}, not {settings}; give these, or remove it")
    model, tokenizer = smollm2.load(file, getattr(torch, given.dtype))
    problems = tasks.read(PROBLEMS)
    asked = [one for task in given.tasks for one in [p for p in problems if p["task"] == task][: given.each]]
    for way in given.ways:
        torch.manual_seed(0)
        started, cpu = time.monotonic(), time.process_time()
        texts = texts_of(model, tokenizer, [WAYS[way](problem) for problem in asked], given.max_tokens)
        result["ways"][way] = counts(texts, asked) | {
            "tasks": {
                task: counts(texts[place : place + given.each], asked[place : place + given.each])
                | {"first_text": texts[place]}
                for place, task in zip(range(0, len(asked), given.each), given.tasks, strict=True)
            },
            "tokens": sum(len(tokenizer.encode(text)) for text in texts),
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - cpu,
        }
        if "theta" in result["ways"]:
            theta = result["ways"]["theta"]
            result["passes"] = {way: passes(theta, one) for way, one in result["ways"].items() if way != "theta"}
        recording.write(path, result)


if __name__ == "__main__":
    main()
