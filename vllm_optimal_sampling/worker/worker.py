"""vLLM's worker with theta: mixed into the engine's own worker class, on a GPU or a CPU (see `subclasses`)."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.config.settings import EngineSettings
from vllm_optimal_sampling.worker.model_runner import add_theta

if TYPE_CHECKING:
    from vllm_optimal_sampling.worker.theta.new_weights import ThetaUpdates

logger = init_logger(__name__)


class ThetaWorkerMixin:
    """Runs the model runner that the worker makes, with theta added."""

    model_runner: Any

    def init_device(self) -> None:
        """vLLM's own; then the model runner becomes one with theta.

        Raises:
            UnsupportedEngineError: the worker, one of the user's own, made a runner that is not vLLM's V2 runner.
        """
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner

        super().init_device()  # type: ignore[misc]
        if not isinstance(self.model_runner, GPUModelRunner):
            runner = type(self.model_runner)
            raise UnsupportedEngineError(
                f"optimal sampling cannot start: the worker runs {runner.__module__}.{runner.__name__}, and theta needs "
                "vLLM's Model Runner V2; extend vllm.v1.worker.gpu.model_runner.GPUModelRunner, or drop --worker-cls"
            )
        add_theta(self.model_runner)

    @cached_property
    def _theta_updates(self) -> ThetaUpdates:
        from vllm_optimal_sampling.worker.theta.new_weights import ThetaUpdates

        return ThetaUpdates(self.model_runner)

    def refusal_of_theta(self, *given: Any) -> str | None:
        """Why weights are not for this theta; see `ThetaUpdates.refusal`."""
        return self._theta_updates.refusal(*given)

    def update_theta(self, *given: Any) -> str | None:
        """New weights for theta; see `ThetaUpdates.load`."""
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.model_runner.vllm_config):
            return self._theta_updates.load(*given)

    def replace_theta(self, folder: str) -> str | None:
        """New weights for theta out of a folder, for servers; see `ThetaUpdates.refusal_of_folder`. Why not, else."""
        refusal = self._theta_updates.refusal_of_folder(folder)
        if refusal is None:
            adapter = folder if self._theta_updates.is_adapter(folder) else None
            refusal = self.update_theta(None, None if adapter else folder, adapter)
        return refusal

    def start_weight_update(self) -> None:
        """vLLM's own, of the draft model where the engine's setting `weight_updates` says so."""
        target = EngineSettings.from_config(self.model_runner.vllm_config).weight_updates
        if target == "theta":
            super().start_draft_weight_update()  # type: ignore[misc]
            return
        if target is None:
            logger.warning_once(
                "New weights are for the teacher, vLLM's main model. If a trainer sends its student's, the teacher is lost: "
                'start the engine with \'{"optimal_sampling": {"weight_updates": "theta"}}\' ("teacher" ends this warning).'
            )
        super().start_weight_update()  # type: ignore[misc]

    def _set_draft_weight_update_target(self) -> None:
        # A theta that shares the teacher's weights is no target of its own: an update would change the teacher too.
        self.model_runner.theta.check_own_weights()
        super()._set_draft_weight_update_target()  # type: ignore[misc]
