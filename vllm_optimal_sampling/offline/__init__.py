"""Optimal sampling of lists of prompts in one object: both models in one engine, texts and alphas out."""

from vllm_optimal_sampling.offline.output import OptimalSamplingOutput
from vllm_optimal_sampling.offline.sampler import OptimalSampler, OptimalSamplingV1

__all__ = ["OptimalSampler", "OptimalSamplingOutput", "OptimalSamplingV1"]
