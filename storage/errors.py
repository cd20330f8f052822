"""The errors that a user can cause, and can mend: both end a command with exit code 2.

BadInput: the tables, a run file or a command line break a rule.
DamagedStore, a kind of BadInput: a stored file is missing, short, or its bytes differ from their checksum.
"""

from typing import Any


class BadInput(ValueError):
    """One line that says where, what was found, which rule it breaks and what to do about it.

    Args:
        place: file, column, row or key, as the user knows it, e.g. ``edges.parquet, column src, row 17``.
        found: the offending value and how many there are, e.g. ``unknown node 99 (3 such edges)``.
        rule: what must hold.
        remedy: what to change.
    """

    def __init__(self, place: str, found: str, *, rule: str, remedy: str) -> None:
        super().__init__(f"{place}: {found}: {rule}; {remedy}")
        self.place = place
        self.found = found
        self.rule = rule
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild the same error in another process, where workers' errors are read."""
        return _rebuilt, (type(self), self.place, self.found, self.rule, self.remedy)


class DamagedStore(BadInput):
    """A stored file is missing, shortened, or a page of it does not match its checksum."""


def _rebuilt(kind: type[BadInput], place: str, found: str, rule: str, remedy: str) -> BadInput:
    return kind(place, found, rule=rule, remedy=remedy)
