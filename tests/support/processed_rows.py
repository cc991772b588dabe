"""The rows that tokens are drawn from and drafts verified against, and what they have to be, in float64.

The order is that of the design: grammar, mix, logit bias with allowed tokens and min_tokens, penalties, bad words,
temperature, min-p, top-k, top-p. Everything is written down once more here, on float64 rows of transformers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm import LLM, SamplingParams

from support.cases import Case
from support.engines import find_runner
from support.reference_models import Reference, expected_log_q

# The rows are float32 through two models' forwards and the mix; observed up to 3e-5. A wrong order of two stages, a
# penalty that counts a token too many, or a stage left out moves rows by 1e-2 and more.
MAX_TOTAL_VARIATION = 3e-4
# A token whose cumulative mass lies this close to top_p, or whose probability to min_p's threshold, may fall on either
# side in float32.
BORDER = 1e-4


@dataclass
class Row:
    request: str
    tokens: list[int]  # the teacher's prompt and everything generated or drafted up to this row
    prompt_len: int
    draft_position: int
    logits: torch.Tensor  # after temperature, min-p, top-k and top-p


class ProcessedRows:
    """Keeps every row that a token is drawn from while it is entered, from both of vLLM's samplers."""

    def __init__(self, llm: LLM):
        self.runner = find_runner(llm)
        self.rows: list[Row] = []

    def __enter__(self) -> ProcessedRows:
        sampler, verifier = self.runner.sampler, self.runner.rejection_sampler
        sample, verify = sampler.sample, verifier._verify

        def listening_sample(logits, slots, idx, idx_np, pos, input_ids, local, *rest, **options):  # type: ignore[no-untyped-def]
            result = sample(logits, slots, idx, idx_np, pos, input_ids, local, *rest, **options)
            self._keep(result[1], slots, pos, input_ids, local)
            return result

        def listening_verify(logits, drafts, input_ids, pos, cu, idx, idx_np, slots, local, *rest):  # type: ignore[no-untyped-def]
            result = verify(logits, drafts, input_ids, pos, cu, idx, idx_np, slots, local, *rest)
            self._keep(result[0], slots, pos, input_ids, local)
            return result

        sampler.sample, verifier._verify = listening_sample, listening_verify
        return self

    def __exit__(self, *_: object) -> None:
        del self.runner.sampler.sample, self.runner.rejection_sampler._verify

    def _keep(self, logits: torch.Tensor, slots: Any, pos: Any, input_ids: Any, local: Any) -> None:
        states = self.runner.req_states
        for i, (slot, j) in enumerate(zip(slots.tolist(), local.tolist(), strict=True)):
            first = int(pos[i]) - j  # position of the newest token that was known before the drafts
            prefill_len = int(states.prefill_len.np[slot])
            if int(pos[i]) + 1 < prefill_len or (j > 0 and first < prefill_len):
                continue  # in the middle of a prompt, or a placeholder for drafts: nothing is drawn
            tokens = states.all_token_ids.gpu[slot, : first + 1].tolist() + input_ids[i - j + 1 : i + 1].tolist()
            self.rows.append(
                Row(states.index_to_req_id[slot], tokens, int(states.prompt_len.np[slot]), j, logits[i].clone())
            )


def expected_logits(
    reference: Reference,
    case: Case,
    params: SamplingParams,
    output: Sequence[int],  # what was generated or drafted before this row
    allowed_by_grammar: Callable[[Sequence[int]], set[int]] | None = None,
) -> torch.Tensor:
    """Log-probabilities [vocab] before temperature: q* (or the teacher's logits) with bias, penalties and bad words."""
    teacher = reference.logits(reference.teacher, [*case.prompt, *output]).clone()
    theta_prompt = case.prompt if case.theta_prompt is None else case.theta_prompt
    if allowed_by_grammar is not None:
        keep = torch.tensor(sorted(allowed_by_grammar(output)))
        masked = torch.full_like(teacher, -torch.inf)
        masked[keep] = teacher[keep]
        teacher = masked
    row = teacher
    if case.arguments.get("optimal_sampling", True):
        theta = reference.logits(reference.theta, [*theta_prompt, *output])
        row = _mix_over_support(teacher, theta, case.arguments)
    for token, bias in (params.logit_bias or {}).items():
        row[token] += bias
    if params.allowed_token_ids is not None:
        kept = row[params.allowed_token_ids].clone()
        row.fill_(-torch.inf)
        row[params.allowed_token_ids] = kept
    if len(output) < params.min_tokens:
        row[sorted(params.all_stop_token_ids)] = -torch.inf
    counts = Counter(output)
    for token in {*counts, *case.prompt}:
        row[token] *= params.repetition_penalty if row[token] <= 0 else 1 / params.repetition_penalty
    for token, count in counts.items():
        row[token] -= params.frequency_penalty * count + params.presence_penalty
    for word in params.bad_words_token_ids or ():
        if len(word) == 1 or list(output[-(len(word) - 1) :]) == list(word[:-1]):
            row[word[-1]] = -torch.inf
    return row


def _mix_over_support(teacher: torch.Tensor, theta: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    """log q* over the tokens that both models can draw."""
    from vllm_optimal_sampling.kernels import Method

    arguments = dict(arguments)
    if "alpha_method" in arguments:
        arguments["method"] = Method[arguments.pop("alpha_method").upper()]
    support = teacher.isfinite() & theta.isfinite()
    row = torch.full_like(teacher, -torch.inf)
    row[support] = expected_log_q(teacher[support], theta[support], **arguments)
    return row


def expected_probabilities(row: torch.Tensor, params: SamplingParams, shift: float = 0.0) -> torch.Tensor:
    """What is drawn from [vocab], after temperature, min-p, top-k and top-p; `shift` moves the two thresholds."""
    row = row / params.temperature
    if params.min_p:
        row = row.masked_fill(row < row.max() + torch.tensor(params.min_p * (1 + shift)).log(), -torch.inf)
    if params.top_k > 0:
        row = row.masked_fill(row < row.topk(min(params.top_k, len(row))).values[-1], -torch.inf)
    if params.top_p < 1:
        probabilities, order = row.softmax(-1).sort(descending=True)
        before = probabilities.cumsum(-1) - probabilities  # a token stays if the likelier ones do not reach top_p
        row = row.clone()
        row[order[before >= params.top_p * (1 + shift)]] = -torch.inf
    return row.softmax(-1)


def total_variation(row: torch.Tensor, expected: torch.Tensor, params: SamplingParams) -> float:
    """Between a row of the engine and what it has to be; the least over both sides of the thresholds."""
    found = row.double().softmax(-1)
    return min(
        0.5 * (found - expected_probabilities(expected, params, shift)).abs().sum().item()
        for shift in (0.0, BORDER, -BORDER)
    )
