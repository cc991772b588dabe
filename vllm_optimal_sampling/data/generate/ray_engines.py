"""Samples from engines on a Ray cluster, each an actor; rows are read and written by this one command.

`ray.data.llm` is not used for it: of an output it keeps the text and drops the per-token record, and a finished row
reaches the disk with its block, not at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from vllm_optimal_sampling.data.generate.engine import LocalEngine, engine_args
from vllm_optimal_sampling.data.generate.errors import RowError, RunError, SettingsError
from vllm_optimal_sampling.data.generate.jobs import Sample
from vllm_optimal_sampling.data.generate.progress import Figures
from vllm_optimal_sampling.data.generate.samplers import Prepared
from vllm_optimal_sampling.data.generate.sampling import sampling_params
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.data.generate.templates import Prompts

CONCURRENCY = 1 << 16
"""Calls that an actor takes at a time: the window of the run is the limit, not Ray."""

Refusal = RowError | RunError | SettingsError


class EngineActor:
    """An engine in a process of the cluster. Refusals are returned, since Ray words what is raised anew."""

    def __init__(self) -> None:
        self._engine: LocalEngine | None = None

    async def start(self, settings: Settings) -> int | Refusal:
        """Start the engine and return how many samples it takes at a time."""
        try:
            self._engine = await LocalEngine.start(settings)
        except (SettingsError, RunError) as error:
            return error
        return self._engine.max_in_flight

    async def prepare(self, prompts: Prompts) -> Prepared | Refusal:
        """As `LocalEngine.prepare`."""
        assert self._engine is not None
        return await _caught(self._engine.prepare(prompts))

    async def sample(self, prepared: Prepared, request_id: str, seed: int | None) -> list[Sample] | Refusal:
        """As `LocalEngine.sample`."""
        assert self._engine is not None
        return await _caught(self._engine.sample(prepared, request_id, seed))

    async def figures(self) -> Figures:
        """As `LocalEngine.figures`."""
        assert self._engine is not None
        return await self._engine.figures()

    async def close(self) -> None:
        """As `LocalEngine.close`."""
        if self._engine is not None:
            await self._engine.close()


async def _caught(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except (RowError, RunError) as error:
        return error


class RayEngines:
    """Several engines as one sampler. Made by `start`."""

    def __init__(self, actors: list[Any], max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self._actors = actors
        self._running = [0] * len(actors)

    @classmethod
    async def start(cls, settings: Settings) -> RayEngines:
        """Start `settings.ray` engines on the cluster of RAY_ADDRESS, or of this machine alone.

        Raises:
            SettingsError: Ray is missing, the cluster has too few GPUs, or an engine refuses the settings.
            RunError: an engine did not start.

        """
        try:
            import ray
        except ModuleNotFoundError:
            raise SettingsError(
                f"ray={settings.ray} needs Ray; install it: pip install 'vllm-optimal-sampling[ray]'"
            ) from None
        sampling_params(settings)
        ranks = engine_args(settings).tensor_parallel_size
        assert settings.ray is not None
        if not ray.is_initialized():
            ray.init()
        gpus = ray.cluster_resources().get("GPU", 0)
        if 0 < gpus < settings.ray * ranks:
            raise SettingsError(
                f"ray={settings.ray} engines with {ranks} GPUs each are more than the {gpus:.0f} GPUs of the cluster"
            )
        place = {"num_gpus": ranks} if gpus else {"num_cpus": 1}
        actor = ray.remote(EngineActor).options(max_concurrency=CONCURRENCY, **place)
        self = cls([actor.remote() for _ in range(settings.ray)], 0)
        try:
            starting = [self._call(one.start, settings) for one in self._actors]
            self.max_in_flight = sum(await asyncio.gather(*starting))
        except BaseException:
            await self.close()
            raise
        return self

    async def _call(self, method: Any, *arguments: Any) -> Any:
        from ray.exceptions import RayError

        try:
            answer = await method.remote(*arguments)
        except RayError as error:
            raise RunError(
                f"an engine on the cluster is gone ({type(error).__name__}: {str(error).splitlines()[0]}). Nothing that "
                "was written is lost: run the same command again to go on"
            ) from None
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def prepare(self, prompts: Prompts) -> Prepared:
        """As Sampler; the row's samples go to the engine that prepared it, where its prompts are cached."""
        number = self._running.index(min(self._running))
        prepared = await self._call(self._actors[number].prepare, prompts)
        return Prepared((number, prepared), prepared.theta_ids)

    async def sample(self, prepared: Prepared, request_id: str, seed: int | None) -> list[Sample]:
        """As Sampler."""
        number, request = prepared.request
        self._running[number] += 1
        try:
            candidates: list[Sample] = await self._call(self._actors[number].sample, request, request_id, seed)
        finally:
            self._running[number] -= 1
        return candidates

    async def figures(self) -> Figures:
        """As Sampler, over all engines."""
        total = Figures()
        for figures in await asyncio.gather(*(self._call(actor.figures) for actor in self._actors)):
            total += figures
        return total

    async def close(self) -> None:
        """As Sampler."""
        import ray

        await asyncio.gather(*(self._call(actor.close) for actor in self._actors), return_exceptions=True)
        for actor in self._actors:
            ray.kill(actor)
