"""What several suites share: `from support.engines import start_engine`. pyproject.toml puts `tests` on pytest's path."""
