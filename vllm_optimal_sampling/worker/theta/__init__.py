"""Theta beside the teacher: its prompts, its block tables, its forwards."""
