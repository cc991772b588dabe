"""Whether drafts would be accepted more often if theta drew them under the request's own top-k, top-p and min-p.

vLLM drafts from theta's whole distribution (at the request's temperature) and verifies against q* as the sampling
parameters leave it. Truncating theta's rows the same way moves its mass to where q* has some. On the other hand the mix
needs theta's whole rows, so the truncated ones would be a second cache of logits, written and read every round.

Measured by transformers alone on the example pair: texts are drawn from the truncated q*, and at each of their tokens
both acceptances are worked out, sum_y min(draft(y), q*(y)).

    python benchmarks/draft_proposals.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import recording
import torch
from transformers import AutoTokenizer
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

PAIR = Path(__file__).resolve().parents[1] / "examples" / "pair"
sys.path.append(str(PAIR))

import measure  # noqa: E402
import task  # noqa: E402

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "top_k": 5},
]
NUM_DRAFTS = 4


def truncated(logprobs: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities [rows, vocabulary] at the temperature, cut as vLLM cuts them: min-p, then top-k, then top-p."""
    scores = logprobs / settings["temperature"]
    for name, warper in (("min_p", MinPLogitsWarper), ("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper)):
        if name in settings:
            scores = warper(settings[name])(None, scores)
    return scores.log_softmax(-1)


@torch.inference_mode()
def acceptances(rows: list[dict], settings: dict[str, Any], seed: int) -> tuple[float, float]:
    """Mean acceptance of a draft from theta's whole distribution, and from the truncated one."""
    teacher, theta = measure.load(PAIR / "teacher"), measure.load(PAIR / "theta")
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "theta")
    readers = (
        measure.Reader(theta, tokenizer, [task.theta_messages(row["problem"]) for row in rows]),
        measure.Reader(teacher, tokenizer, [task.teacher_messages(row["problem"], row["answer"]) for row in rows]),
    )
    generator = torch.Generator().manual_seed(seed)
    running = torch.ones(len(rows), dtype=torch.bool)
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    for _ in range(measure.MAX_TOKENS):
        u, v = (reader.logprobs() for reader in readers)
        q = truncated(measure.mix(u, v)[0], settings).exp()
        for i, draft in enumerate((u.div(settings["temperature"]).softmax(-1), truncated(u, settings).exp())):
            sums[i] += torch.minimum(draft, q).sum(-1)[running].sum()
        count += int(running.sum())
        drawn = torch.multinomial(q, 1, generator=generator)[:, 0]
        for reader in readers:
            reader.read(drawn)
        running &= drawn != tokenizer.eos_token_id
        if not running.any():
            break
    whole, cut = (sums / count).tolist()
    return whole, cut


def tokens_per_round(acceptance: float) -> float:
    """1 + a + ... + a^K."""
    return sum(acceptance**i for i in range(NUM_DRAFTS + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=300, help="of examples/pair/problems.jsonl (300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=recording.RESULTS / "draft-proposals.json")
    arguments = parser.parse_args()
    result = recording.header("draft_proposals")
    result |= {"problems": arguments.problems, "seed": arguments.seed, "num_drafts": NUM_DRAFTS, "settings": []}
    rows = task.read_rows(PAIR / "problems.jsonl")[: arguments.problems]
    for settings in SETTINGS:
        whole, cut = acceptances(rows, settings, arguments.seed)
        gain = tokens_per_round(cut) / tokens_per_round(whole) - 1
        print(f"{settings}: accepted {whole:.4f} whole, {cut:.4f} truncated; {gain:+.2%} tokens a round")
        result["settings"].append(settings | {"whole": whole, "truncated": cut, "gain_in_tokens_per_round": gain})
    recording.write(arguments.output, result)


if __name__ == "__main__":
    main()
