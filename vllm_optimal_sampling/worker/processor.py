"""The logits processor: turns the teacher's rows into log q*, first of all processors, and does nothing else.

vLLM loads this class in every engine of the environment, on either model runner, and in the front end. It stays light
to import, and inert in an engine that was not asked for optimal sampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcessor, LogitsProcRequestState

from vllm_optimal_sampling.params import OptimalSamplingParams

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

    from vllm_optimal_sampling.worker.theta.scorer import ThetaScorer
    from vllm_optimal_sampling.worker.theta.speculator import ThetaSpeculator


class OptimalSamplingLogitsProcessor(LogitsProcessor):
    """Mixes each row of the teacher with theta's row for the same position (see `kernels.mix_`).

    Theta's forwards never run here: vLLM may call `apply` several times in a step, with some of the rows each time.
    """

    def __new__(cls, *arguments: Any) -> Any:
        # Model Runner V1 loads entry points too, and calls them with (vllm_config, device, is_pin_memory). It cannot do
        # optimal sampling, and an engine that asks for it there is refused; one that does not must run undisturbed.
        if len(arguments) == 3:
            from vllm_optimal_sampling.worker.v1_runner import inert_processor

            return inert_processor()
        return super().__new__(cls)

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState):
        super().__init__(vllm_config, req_states)
        self.theta: ThetaSpeculator | ThetaScorer | None = None

    def connect(self, theta: ThetaSpeculator | ThetaScorer) -> None:
        """Mix with the rows of this theta from now on."""
        self.theta = theta

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        if self.theta is None:
            return False
        # The front end has checked the arguments and turned theta's prompt into tokens.
        params = OptimalSamplingParams.from_resolved_extra_args(sampling_params.extra_args)
        self.theta.requests.add(req_idx, params, params.theta_prompt_token_ids)
        self.theta.recorder.add(req_idx, params)
        return params.optimal_sampling

    def apply_staged_writes(self) -> None:
        if self.theta is not None:
            self.theta.requests.apply_staged_writes()

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        if self.theta is None:
            return logits
        from vllm_optimal_sampling.kernels import mix_

        mix_(
            logits,
            self.theta.rows,
            ctx.expanded_idx_mapping,
            ctx.expanded_local_pos,
            ctx.pos,
            self.theta.requests.settings,
            self.theta.record,
            self.theta.scratch,
            self.theta.requests.searches(ctx.idx_mapping_np),
        )
        return logits
