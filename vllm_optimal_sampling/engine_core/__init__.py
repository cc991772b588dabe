"""The scheduler's process: theta's slots in the KV cache, and what a block's hash knows of theta."""
