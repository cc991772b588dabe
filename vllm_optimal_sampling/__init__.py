"""Optimal sampling for vLLM: every token from q* ∝ π_θ^(1-α) π_t^α, with theta as vLLM's draft model."""

__version__ = "0.1.0"
