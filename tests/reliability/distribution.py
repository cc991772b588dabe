"""Random settings, every row audited against float64, every drawn token put to the test: a job that can be resumed.

A batch draws, for each of its requests, prompts of both models, a way to choose alpha, and sampling parameters; neighbours
share prompts. Three rows are audited for each position: theta's, log q*, and the row that the token is drawn from (after
bias, penalties, temperature, min-p, top-k and top-p). Each drawn token is placed in the distribution function of its
float64 row, twice: tokens in order of probability, and in order of how much likelier the teacher holds them than theta.
Those places are uniform if the draws are exact. They are counted in bins by slice (method, sampling parameter, number of
drafts, draft position, ...), each slice has its chi-square test, and Holm's procedure over all of them keeps the chance
that exact draws fail anywhere in a run below `FALSE_ALARM`, however the slices hang together.

    export PYTHONPATH=tests:examples/pair
    python tests/reliability/distribution.py       # 100,000 rows; state and result: results/distribution.json
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from record import Record
from rows import Models, closest_drawn, mixtures, place_in_distribution, processed
from vllm import LLM, SamplingParams

from support.cases import token_ids
from support.processed_rows import BORDER, ProcessedRows
from support.random_models import save_model
from support.row_audit import MAX_LOG_PROB_ERROR, MIN_PROBABILITY, AuditError, RowAudit
from vllm_optimal_sampling.alpha_methods import ALPHA_METHODS

BINS = 20
EXPECTED = 15
"""Draws in a bin, at least, for a slice to be tested. Chi-square's law understates far tails of small counts: in 5 million
uniform samples of 400 draws a p-value below 1e-5 came up 1.6e-5 of the time (of 100 draws, 2.3e-5)."""
FALSE_ALARM = 1e-3
"""For the whole run. Holm's procedure works at half of it, for what chi-square's law understates."""
MAX_TOTAL_VARIATION = 3e-4
"""As in tests/engine: float32 forwards and float32 mix against float64, observed up to 3e-5."""

ENGINES: tuple[dict[str, Any], ...] = (
    {"num_speculative_tokens": 4, "max_num_batched_tokens": 2048},
    {"num_speculative_tokens": 1, "max_num_batched_tokens": 128},
    {"num_speculative_tokens": 3, "max_num_batched_tokens": 512, "num_gpu_blocks_override": 100},
    {"num_speculative_tokens": 6, "max_num_batched_tokens": 256, "enable_prefix_caching": False},
)
"""Drafts, chunked prompts, so few blocks that requests preempt one another, no prefix cache."""


@dataclass
class Ask:
    """One request of a batch."""

    prompt: list[int]
    theta_prompt: list[int] | None
    arguments: dict[str, Any]
    params: SamplingParams
    slices: tuple[str, ...]


@dataclass
class Outcome:
    """What batches gave; adds up over batches and lives in the state file."""

    batches: int = 0
    rows: int = 0
    mixed_rows: int = 0
    tokens: int = 0
    greedy_tokens: int = 0
    rows_at_thresholds: int = 0  # right only with a threshold moved by what float32 cannot tell
    theta_error: float = 0.0
    total_variation: float = 0.0
    drawn_total_variation: float = 0.0
    rows_by_draft_position: dict[str, int] = field(default_factory=dict)
    bins: dict[str, list[int]] = field(default_factory=dict)
    engine_seconds: float = 0.0
    seconds: float = 0.0

    def count(self, name: str, place: float) -> None:
        self.bins.setdefault(name, [0] * BINS)[int(place * BINS)] += 1


def draw_requests(seed: int, count: int, max_tokens: int) -> list[Ask]:
    """The requests of a batch, a pure function of the seed."""
    rng = random.Random(seed)
    shared, shared_theta = token_ids(rng, 40), token_ids(rng, 20)
    asks = []
    for number in range(count):
        arguments: dict[str, Any] = {}
        slices = []
        method = rng.choice(ALPHA_METHODS)
        if rng.random() < 0.08:
            arguments["optimal_sampling"] = False
            slices.append("opted out")
        else:
            arguments["alpha_method"] = method
            slices.append(method)
            if method in ("fixed", "arithmetic"):
                arguments["alpha"] = rng.choice([0.0, 1.0, rng.random()])
            if method == "kl_budget":
                arguments["kl_budget"] = rng.choice([1e-3, 0.05, 1.0, 3 * rng.random()])
            if method == "js_gate":
                arguments["js_sensitivity"] = rng.choice([1.0, 50.0, 10 * rng.random()])
            if rng.random() < 0.25:
                arguments["alpha_min"], arguments["alpha_max"] = sorted((rng.random(), rng.random()))
                slices.append("alpha bounds")
            if rng.random() < 0.15:
                arguments["support_top_k"] = rng.choice([1, 2, 10, 100, 2000])
                slices.append("support")
            if rng.random() < 0.15:
                arguments["support_top_p"] = rng.uniform(0.3, 1)
                slices.append("support")
            if rng.random() < 0.1:
                arguments["teacher_only_tokens"] = rng.randrange(1, 6)
                slices.append("teacher only")
            if rng.random() < 0.15:
                arguments["max_js_divergence"] = rng.uniform(0.1, 0.69)
                slices.append("max js divergence")
        options: dict[str, Any] = {"temperature": rng.choice([1.0, 1.0, rng.uniform(0.3, 2.0)])}
        if options["temperature"] != 1:
            slices.append("temperature")
        if rng.random() < 0.07:
            options["temperature"] = 0.0
        for name, value in {
            "top_k": rng.choice([1, 3, 20, 200]),
            "top_p": rng.uniform(0.3, 0.99),
            "min_p": rng.uniform(0.01, 0.3),
            "repetition_penalty": rng.uniform(0.8, 1.5),
            "presence_penalty": rng.uniform(-1, 1.5),
            "frequency_penalty": rng.uniform(-0.5, 1.0),
            "logit_bias": {rng.randrange(512): rng.uniform(-3, 6) for _ in range(3)},
        }.items():
            if rng.random() < 0.12:
                options[name] = value
                slices.append(name.replace("_", " "))
        prompt = shared if rng.random() < 0.3 else token_ids(rng, rng.choice([1, 2, 15, 16, 17, 31, 32, 33, 48, 70]))
        own = rng.random() < 0.8 and "optimal_sampling" not in arguments
        theta_prompt = None
        if own:
            theta_prompt = (
                shared_theta if rng.random() < 0.3 else token_ids(rng, rng.choice([1, 7, 16, 31, 32, 33, 64]))
            )
        slices.append("own theta prompt" if own else "one prompt")
        extra_args = dict(arguments) | ({"theta_prompt_token_ids": theta_prompt} if own else {})
        params = SamplingParams(
            max_tokens=max_tokens,
            seed=seed * 1000 + number if rng.random() < 0.5 else None,
            ignore_eos=True,
            extra_args=extra_args,
            **options,
        )
        asks.append(Ask(prompt, theta_prompt, arguments, params, tuple(dict.fromkeys(slices))))
    return asks


def audit_batch(llm: LLM, models: Models, asks: list[Ask], engine: str, seed: int, outcome: Outcome) -> None:
    """Run the requests as one batch and audit it.

    Args:
        llm: an engine in this process.
        models: both models again.
        asks: the requests.
        engine: a slice: what the engine is like.
        seed: of the numbers that randomise the places of tokens.
        outcome: what is found is added to it.

    Raises:
        AuditError: a row is not what the two models say.
    """
    start = time.monotonic()
    with RowAudit(llm) as audit, ProcessedRows(llm) as drawn:
        outputs = llm.generate(
            [{"prompt_token_ids": ask.prompt} for ask in asks], [ask.params for ask in asks], use_tqdm=False
        )
    outcome.engine_seconds += time.monotonic() - start
    if [(row.request, row.tokens) for row in audit.rows] != [(row.request, row.tokens) for row in drawn.rows]:
        raise AuditError("the rows that were mixed are not those that were drawn from")
    by_id = {output.request_id: ask for output, ask in zip(outputs, asks, strict=True)}
    owners = [by_id[row.request.rpartition("-")[0]] for row in audit.rows]

    # The rows of one request in one step are prefixes of one sequence.
    groups: dict[tuple[str, int], list[int]] = {}
    for i, row in enumerate(audit.rows):
        groups.setdefault((row.request, row.step), []).append(i)
    order, teacher_sequences, theta_sequences, counts = [], [], [], []
    for rows in groups.values():
        rows.sort(key=lambda i: len(audit.rows[i].tokens))
        last, owner = audit.rows[rows[-1]], owners[rows[-1]]
        order += rows
        counts.append(len(rows))
        prompt = owner.prompt if owner.theta_prompt is None else owner.theta_prompt
        teacher_sequences.append(last.tokens)
        theta_sequences.append([*prompt, *last.tokens[len(owner.prompt) :]])
    teacher = Models.last_logits(models.teacher, teacher_sequences, counts)
    theta = Models.last_logits(models.theta, theta_sequences, counts)
    kept = [audit.rows[i] for i in order]
    owners = [owners[i] for i in order]
    final = [drawn.rows[i].logits for i in order]
    arguments = []
    for row, owner in zip(kept, owners, strict=True):
        done = len(row.tokens) - len(owner.prompt)
        alone = not owner.arguments.get("optimal_sampling", True)
        arguments.append({**owner.arguments, "alone": alone or done < owner.arguments.get("teacher_only_tokens", 0)})

    _check_theta(torch.stack([row.theta for row in kept]), theta, kept, outcome)
    expected = _check_mixed(torch.stack([row.after for row in kept]), teacher, theta, arguments, kept, outcome)
    probabilities: dict[tuple[str, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]] = {}
    ratio = teacher.log_softmax(-1) - theta.log_softmax(-1)
    for i, (row, owner) in enumerate(zip(kept, owners, strict=True)):
        output = row.tokens[len(owner.prompt) :]
        row_processed = processed(expected[i], owner.params, owner.prompt, output)
        if owner.params.temperature == 0:
            probabilities[row.request, tuple(row.tokens)] = (row_processed, ratio[i])
            continue
        found = final[i].double().softmax(-1)
        row_drawn, least, moved = closest_drawn(row_processed, owner.params, found, MAX_TOTAL_VARIATION)
        outcome.rows_at_thresholds += moved
        outcome.drawn_total_variation = max(outcome.drawn_total_variation, least)
        if not least <= MAX_TOTAL_VARIATION:
            raise AuditError(f"the row drawn from is off by {least:.3g} in total variation: {_where(row, owner)}")
        probabilities[row.request, tuple(row.tokens)] = (row_drawn, ratio[i])
    outcome.rows += len(kept)
    outcome.mixed_rows += sum(not a["alone"] for a in arguments)
    positions = Counter(outcome.rows_by_draft_position)
    positions.update(str(row.draft_position) for row in kept)
    outcome.rows_by_draft_position = dict(sorted(positions.items()))
    _place_tokens(outputs, asks, kept, probabilities, engine, random.Random(seed), outcome)
    outcome.batches += 1
    outcome.seconds += time.monotonic() - start


def _where(row: Any, owner: Ask) -> str:
    return f"{row.request} position {row.position} draft {row.draft_position} of {owner.arguments} {owner.params}"


def _check_theta(found: torch.Tensor, theta: torch.Tensor, kept: list[Any], outcome: Outcome) -> None:
    found, theta = found.double().log_softmax(-1), theta.log_softmax(-1)
    likely = torch.maximum(found, theta) > math.log(MIN_PROBABILITY)
    errors = torch.where(likely, (found - theta).abs(), 0.0).amax(-1)
    worst = int(errors.argmax())
    outcome.theta_error = max(outcome.theta_error, float(errors[worst]))
    if not errors[worst] <= MAX_LOG_PROB_ERROR:
        row = kept[worst]
        raise AuditError(f"theta's row is off by {errors[worst]:.3g} nats: {row.request} position {row.position}")


def _check_mixed(
    found: torch.Tensor, teacher: torch.Tensor, theta: torch.Tensor, arguments: list, kept: list, outcome: Outcome
) -> torch.Tensor:
    """log q* as it has to be, on that side of a threshold on which the engine's float32 row lies."""
    expected = mixtures(teacher, theta, arguments)
    q = found.double().softmax(-1)

    def variation(rows: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
        return 0.5 * (q[rows] - one.softmax(-1)).abs().sum(-1)

    errors = variation(torch.arange(len(kept)), expected)
    for border in (0.0, BORDER, -BORDER):
        off = (errors > MAX_TOTAL_VARIATION).nonzero()[:, 0]
        if not len(off):
            break
        other = mixtures(teacher[off], theta[off], [arguments[i] for i in off.tolist()], border, q[off] > 0)
        again = variation(off, other)
        better = again < errors[off]
        outcome.rows_at_thresholds += int((better & (again <= MAX_TOTAL_VARIATION)).sum())
        expected[off[better]], errors[off[better]] = other[better], again[better]
    worst = int(errors.argmax())
    outcome.total_variation = max(outcome.total_variation, float(errors[worst]))
    if not errors[worst] <= MAX_TOTAL_VARIATION:
        row = kept[worst]
        raise AuditError(
            f"log q* is off by {errors[worst]:.3g} in total variation: {row.request} position {row.position} "
            f"draft {row.draft_position} of {arguments[worst]}"
        )
    return expected


def _place_tokens(
    outputs: list[Any],
    asks: list[Ask],
    kept: list,
    probabilities: dict,
    engine: str,
    rng: random.Random,
    outcome: Outcome,
) -> None:
    """Where each drawn token lies in the distribution of its row; a greedy one has to be the likeliest."""
    names = {row.request.rpartition("-")[0]: row.request for row in kept}
    drafts = {(row.request, tuple(row.tokens)): row.draft_position for row in kept}
    for output, ask in zip(outputs, asks, strict=True):
        request = names[output.request_id]
        tokens = list(output.outputs[0].token_ids)
        for i, token in enumerate(tokens):
            key = (request, (*ask.prompt, *tokens[:i]))
            row, ratio = probabilities[key]
            if ask.params.temperature == 0:
                outcome.greedy_tokens += 1
                if row[token] < row.max() - MAX_LOG_PROB_ERROR:
                    raise AuditError(f"a greedy token is {row.max() - row[token]:.3g} nats below the likeliest: {ask}")
                continue
            outcome.tokens += 1
            places = {
                "by probability": place_in_distribution(row, token, row, rng.random),
                "by ratio": place_in_distribution(row, token, ratio, rng.random),
            }
            seeded = "seeded" if ask.params.seed is not None else "unseeded"
            for name in ("all", engine, seeded, f"draft position {drafts[key]}", *ask.slices):
                for how, place in places.items():
                    outcome.count(f"{name}, {how}", place)


def chi_square_p(bins: list[int]) -> float:
    """The chance of counts at least this far from uniform."""
    total = sum(bins)
    statistic = sum((count - total / BINS) ** 2 / (total / BINS) for count in bins)
    half = torch.tensor((BINS - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)))


def holm(p_values: dict[str, float]) -> list[str]:
    """The slices that fail, by Holm's procedure at half of `FALSE_ALARM`."""
    failed = []
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > FALSE_ALARM / 2 / (len(p_values) - i):
            break
        failed.append(name)
    return failed


def verdict(outcome: Outcome) -> dict[str, Any]:
    """p-values of the slices with at least `EXPECTED` draws a bin expected, the least first, and those that fail."""
    p_values = {name: chi_square_p(bins) for name, bins in outcome.bins.items() if sum(bins) >= EXPECTED * BINS}
    return {
        "false alarm rate": FALSE_ALARM,
        "slices": len(p_values),
        "failed": holm(p_values),
        "p": {name: round(p, 6) for name, p in sorted(p_values.items(), key=lambda item: item[1])},
    }


def start_engine(folder: Path, **options: Any) -> tuple[LLM, str, str]:
    """An engine of two small random models, made in `folder` if they are not there; with their paths."""
    paths = []
    for name, size, layers, seed in (("teacher", 64, 2, 0), ("theta", 32, 1, 1)):
        path = folder / name
        paths.append(str(path) if path.exists() else save_model(path, hidden_size=size, num_layers=layers, seed=seed))
    llm = LLM(
        model=paths[0],
        logits_processors=["optimal_sampling"],
        speculative_config={"model": paths[1], "num_speculative_tokens": options.pop("num_speculative_tokens")},
        **{
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
            "max_num_seqs": 64,
            "block_size": 32,
            "kv_cache_memory_bytes": 1 << 26,
            "disable_log_stats": True,
            "logprobs_mode": "processed_logprobs",
            **options,
        },
    )
    return llm, paths[0], paths[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--requests", type=int, default=64, help="in a batch")
    parser.add_argument("--max-tokens", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "distribution.json")
    parser.add_argument("--fresh", action="store_true", help="forget the batches that were done")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Record(options.output, fresh=options.fresh)
    outcome = Outcome(**record.data.get("outcome", {}))

    def is_enough(share: float = 1.0) -> bool:
        return outcome.rows >= share * options.rows and outcome.tokens >= share * options.tokens

    with TemporaryDirectory() as folder:
        for number, engine in enumerate(ENGINES):
            if is_enough((number + 1) / len(ENGINES)):
                continue
            name = ", ".join(f"{key} {value}" for key, value in engine.items())
            llm, *paths = start_engine(Path(folder), **engine)
            models = Models(*paths)
            while not is_enough((number + 1) / len(ENGINES)):
                asks = draw_requests(1 + outcome.batches, options.requests, options.max_tokens)
                audit_batch(llm, models, asks, name, outcome.batches, outcome)
                record.data = {"verdict": verdict(outcome), "outcome": vars(outcome)}
                record.save()
                speed = outcome.rows / outcome.seconds
                print(
                    f"{outcome.batches} batches, {outcome.rows} rows, {outcome.tokens} tokens, {speed:.0f} rows/s",
                    flush=True,
                )
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
    print(json.dumps({**{k: v for k, v in vars(outcome).items() if k != "bins"}, **verdict(outcome)}, indent=1))
    return 1 if verdict(outcome)["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
