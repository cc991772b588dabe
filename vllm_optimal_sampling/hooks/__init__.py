"""The patches of vLLM: each delegates to a named function of this package."""
