"""The worker's process: theta's prompts, passes and rows, the mix with the teacher's rows, and the record of it."""
