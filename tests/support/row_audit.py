"""The row audit: every row that enters vLLM's sampler, against float64 transformers on the same tokens.

Greedy comparison is nearly blind: a corrupted row of theta seldom changes an argmax of a small random model. So the
audit listens at the processor and, for each row of each step, keeps the tokens before it, theta's cached row and the
row of log q* that goes on to temperature, top-k and the rejection sampler. `check` then computes both rows anew, in
float64, by transformers alone. Rows of drafts that were rejected later are audited too.

    with RowAudit(llm) as audit:
        llm.generate(...)
    report = audit.check(reference)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isinf, isnan, nan
from typing import Any

import torch
from vllm import LLM
from vllm_optimal_sampling.kernels import NEVER, Method
from vllm_optimal_sampling.kernels.reference import mix

from support.engines import find_runner
from support.reference_models import ReferenceModels, expected_log_q
from support.tolerances import CPU_FLOAT32, Tolerances, tolerances_of
from vllm_optimal_sampling.worker.theta.scorer import ThetaScorer

# Of a float32 forward on a CPU; the audit itself takes its engine's (`tolerances`).
MAX_LOG_PROB_ERROR = CPU_FLOAT32.theta_nats
MAX_TOTAL_VARIATION = CPU_FLOAT32.total_variation
# Where the tail of q* is compared: below this probability an absolute error in log space means nothing.
MIN_PROBABILITY = 1e-6


class AuditError(AssertionError):
    """A row differs from what the two models say.

    Attributes:
        times_tolerance: by how many times what is tolerated; infinite where nothing is.
    """

    def __init__(self, message: str, times_tolerance: float = inf):
        super().__init__(message)
        self.times_tolerance = times_tolerance


@dataclass
class Row:
    request: str
    step: int
    slot: int
    draft_position: int
    position: int
    tokens: list[int]  # the teacher's prompt and everything generated or drafted up to this row
    prompt_len: int
    theta_prompt: list[int] | None
    settings: dict[str, float]
    enabled: bool
    theta: torch.Tensor | None  # None where theta has nothing to do with the request
    before: torch.Tensor
    after: torch.Tensor


@dataclass(frozen=True)
class Vocabularies:
    """What a test knows of a teacher and a theta with different ids.

    Attributes:
        partners: theta's ids, by the teacher's of the same meaning; others have no mass in q*.
        read: what theta reads for a token that was generated, by the teacher's id.
        read_in_prompts: the same in the teacher's prompt, where theta has none.
    """

    partners: dict[int, int]
    read: dict[int, int]
    read_in_prompts: dict[int, list[int]]


@dataclass
class Report:
    rows: int = 0
    mixed: int = 0
    theta_error: float = 0.0
    teacher_error: float = 0.0
    q_error: float = 0.0
    total_variation: float = 0.0
    mix_total_variation: float = 0.0
    errors: list[float] = field(default_factory=list)
    """Of each row, the teacher's or theta's in nats, whichever is larger."""
    worst: AuditError | None = None
    """Of the rows beyond the tolerances, the one by most."""
    by_draft_position: Counter = field(default_factory=Counter)


class AuditedRows:
    """Rows that passed a processor, and how far they may be from float64."""

    def __init__(self, rows: list[Row], tolerances: Tolerances):
        self.rows = rows
        self.tolerances = tolerances

    def check(
        self,
        reference: ReferenceModels,
        theta_prompts: dict[str, Sequence[int] | None] | None = None,
        vocabularies: Vocabularies | None = None,
        images: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> Report:
        """Compare every row kept with float64.

        Args:
            reference: the two models.
            theta_prompts: per request id, theta's prompt as the *caller* gave it (None: the teacher's). Without it
                the audit trusts the prompt that reached the worker.
            vocabularies: of a teacher and a theta that have different ones.
            images: what the teacher's prompt has beside its tokens, per request id as in `theta_prompts`.

        Raises:
            AuditError: of the rows beyond the tolerances the one by most, saying which and by how much.
        """
        report = Report()
        # Longest first, so that one forward serves all prefixes of a trajectory.
        for row in sorted(self.rows, key=lambda row: -len(row.tokens)):
            theta_prompt = row.theta_prompt
            # One of several samples has its number before the request's id: 3_17-ab12.
            request_id = row.request.rpartition("_")[2]
            if theta_prompts is not None:
                (given,) = (prompt for request, prompt in theta_prompts.items() if request_id.startswith(request))
                theta_prompt = None if given is None else list(given)
            prompt = row.tokens[: row.prompt_len] if theta_prompt is None else theta_prompt
            image = next((image for name, image in (images or {}).items() if request_id.startswith(name)), None)
            teacher = reference.logits(reference.teacher, row.tokens, image)
            # Theta has no embedding for the padding ids of a teacher that is padded further: its last id stands in.
            last_id = reference.theta.config.get_text_config().vocab_size - 1
            generated = row.tokens[row.prompt_len :]
            if vocabularies is not None:
                generated = [vocabularies.read[token] for token in generated]
                if theta_prompt is None:
                    # For a request that opted out theta only drafts, at the teacher's own positions.
                    reads = vocabularies.read_in_prompts
                    prompt = [token for mine in prompt for token in reads[mine][: None if row.enabled else 1]]
            read = [min(token, last_id) for token in [*prompt, *generated]]
            theta = reference.logits(reference.theta, read)
            if vocabularies is not None:
                theirs, theta = theta, torch.full_like(teacher, -inf)
                theta[list(vocabularies.partners)] = theirs[list(vocabularies.partners.values())]
            self._check_row(row, teacher, theta, report)
        if report.worst is not None:
            raise report.worst
        return report

    def _judge(self, what: str, error: float, tolerated: float, where: str, report: Report) -> None:
        # A poisoned cache may leave NaN, which is beyond every tolerance too.
        if error <= tolerated:
            return
        times = inf if isnan(error) else error / tolerated
        if report.worst is None or times > report.worst.times_tolerance:
            report.worst = AuditError(f"{what} off by {error:.3g}, {tolerated:g} is tolerated: {where}", times)

    def _check_row(self, row: Row, teacher: torch.Tensor, theta: torch.Tensor, report: Report) -> None:
        where = f"{row.request} position {row.position} draft {row.draft_position} step {row.step}"
        report.rows += 1
        report.by_draft_position[row.draft_position] += 1
        shared = min(teacher.shape[-1], theta.shape[-1])
        theta_error = 0.0
        if row.theta is not None:
            theta_error = _log_prob_error(row.theta[:shared].double().log_softmax(-1), theta[:shared].log_softmax(-1))
            report.theta_error = max(report.theta_error, theta_error)
            self._judge("theta's row (nats) is", theta_error, self.tolerances.theta_nats, where, report)
        teacher_error = _log_prob_error(row.before.double().log_softmax(-1), teacher.log_softmax(-1))
        report.teacher_error = max(report.teacher_error, teacher_error)
        report.errors.append(max(theta_error, teacher_error))
        self._judge("the teacher's row (nats) is", teacher_error, self.tolerances.teacher_nats, where, report)
        if not row.enabled:
            if not torch.equal(row.before, row.after):
                raise AuditError(f"a row of an opted-out request was changed: {where}")
            expected = teacher.log_softmax(-1)
        else:
            report.mixed += 1
            if row.position >= row.settings["first_position"]:
                assert row.theta is not None
                if row.theta[:shared].isfinite().any():
                    given = _expected(row, row.before[:shared].double(), row.theta[:shared].double())
                    mixed = row.after[:shared].double().log_softmax(-1)
                    self._judge_mix(_total_variation(mixed, given), where, report)
                # Where the padded vocabularies differ, only the ids of both have mass.
                expected = torch.full_like(teacher, float("-inf"))
                expected[:shared] = _expected(row, teacher[:shared], theta[:shared])
            else:
                expected = teacher.log_softmax(-1)
        found = row.after.double().log_softmax(-1)
        q_error = _log_prob_error(found, expected)
        total_variation = _total_variation(found, expected)
        report.q_error = max(report.q_error, q_error)
        report.total_variation = max(report.total_variation, total_variation)
        self._judge("log q* (total variation) is", total_variation, self.tolerances.total_variation, where, report)

    def _judge_mix(self, total_variation: float, where: str, report: Report) -> None:
        report.mix_total_variation = max(report.mix_total_variation, total_variation)
        tolerated = self.tolerances.mix_total_variation
        self._judge("log q* of the rows it was given (total variation) is", total_variation, tolerated, where, report)


class RowAudit(AuditedRows):
    """Keeps the rows that pass the processor while it is entered. Several engines may be audited one after another.

    Args:
        llm: an engine in this process.
        runner: in place of it, the model runner of one of several ranks (see `rank_audit`).
    """

    def __init__(self, llm: LLM | None = None, runner: Any = None):
        self.runner = find_runner(llm) if llm is not None else runner
        self.processor = self.runner.sampler.logits_processors[0]
        super().__init__([], tolerances_of(self.runner))
        self.step = 0

    def __enter__(self) -> RowAudit:
        self._apply = self.processor.apply
        self.processor.apply = self._listen  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self.processor.apply

    def _listen(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        theta = self.processor.theta
        assert theta is not None
        states, requests = self.runner.req_states, theta.requests
        before = logits.clone()
        after = self._apply(logits, ctx)
        self.step += 1
        slots, local = ctx.expanded_idx_mapping.tolist(), ctx.expanded_local_pos.tolist()
        for i, (slot, j) in enumerate(zip(slots, local, strict=True)):
            position = int(ctx.pos[i])
            first = position - j  # position of the newest token that was known before the drafts
            prefill_len = int(states.prefill_len.np[slot])
            if position + 1 < prefill_len or (j > 0 and first < prefill_len):
                continue  # in the middle of a prompt, or a placeholder for drafts: vLLM drops what is drawn
            tokens = states.all_token_ids.gpu[slot, : first + 1].tolist() + ctx.input_ids[i - j + 1 : i + 1].tolist()
            theta_len = int(requests.prompt_len.np[slot])
            settings = {name: getattr(requests.settings, name)[slot].item() for name in vars(requests.settings)}
            enabled = settings["first_position"] != NEVER
            # A theta that scores has nothing to do with requests that opted out; one that drafts reads along.
            reads = enabled or not isinstance(theta, ThetaScorer)
            self.rows.append(
                Row(
                    request=states.index_to_req_id[slot],
                    step=self.step,
                    slot=slot,
                    draft_position=j,
                    position=position,
                    tokens=tokens,
                    prompt_len=int(states.prompt_len.np[slot]),
                    theta_prompt=requests.prompts.gpu[slot, :theta_len].tolist() if theta_len else None,
                    settings=settings,
                    enabled=enabled,
                    theta=theta.rows[slot, j].to("cpu", copy=True) if reads else None,
                    before=before[i].to("cpu", copy=True),
                    after=after[i].to("cpu", copy=True),
                )
            )
        return after


def _expected(row: Row, teacher: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """log q* of one row from float64 logits [vocab]: of the usual methods written down from the definition once more."""
    settings = {name: value for name, value in row.settings.items() if name != "first_position"}
    method = Method(int(settings["method"]))
    whole = not settings["support_top_k"] and settings["support_top_p"] == 1 and isinf(settings["max_js_divergence"])
    constant = all(settings[name] == settings[f"{name}_end"] for name in ("alpha", "alpha_min", "alpha_max"))
    if whole and constant and method in (Method.KL_SYMMETRY, Method.FIXED):
        shared = teacher.isfinite() & theta.isfinite()
        log_q = torch.full_like(teacher, -inf)
        log_q[shared] = expected_log_q(
            teacher[shared],
            theta[shared],
            **{name: settings[name] for name in ("method", "alpha", "alpha_min", "alpha_max")},
        )
        return log_q
    counts = {name: int(settings[name]) for name in ("support_top_k", "schedule_position", "schedule_steps")}
    mixture = mix(teacher, theta, **{**settings, **counts, "method": method, "token_position": row.position})
    return mixture.log_q.log_softmax(-1)


def _total_variation(found: torch.Tensor, expected: torch.Tensor) -> float:
    return 0.5 * (found.exp() - expected.exp()).abs().sum().item()


def _log_prob_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    likely = torch.maximum(found, expected) > torch.tensor(MIN_PROBABILITY, dtype=torch.float64).log()
    # A row that nobody has written has no mass at all.
    return (found[likely] - expected[likely]).abs().max().item() if likely.any() else nan
