"""What can go wrong in a run, by what it ends: the command before it begins, one row, or the run."""


class SettingsError(ValueError):
    """The run cannot begin as asked. One sentence: the argument, the value, what is allowed."""


class RowError(ValueError):
    """One row cannot be sampled. Its message becomes the row's `error`, and the run goes on."""


class RunError(RuntimeError):
    """The run cannot go on. What is written stays; the message says what to do."""
