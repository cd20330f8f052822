"""How long work tells a person where it is: a protocol that upper rooms implement with a bar."""

from typing import Protocol


class Progress(Protocol):
    """Told about each stage of a long job; calls come from one thread and must be cheap."""

    def stage(self, name: str, *, total: int, unit: str) -> None:
        """A new stage begins; `total` units of work lie ahead (0 when unknown)."""

    def advance(self, amount: int) -> None:
        """`amount` more units of the current stage are done."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


class NoProgress:
    """Says nothing."""

    def stage(self, name: str, *, total: int, unit: str) -> None:
        """Ignore the new stage."""

    def advance(self, amount: int) -> None:
        """Ignore the advance."""

    def note(self, text: str) -> None:
        """Ignore the note."""
