"""Failures that are nobody's input: exit code 1, one line, no traceback."""


class TrainingFailed(RuntimeError):
    """Training cannot go on although its input is well formed."""
