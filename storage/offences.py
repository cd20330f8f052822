"""What a pass over a table finds wrong: it goes on to the end, so that the message can count."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import BadInput
from storage.tables import Table


@dataclass(frozen=True)
class Offence:
    """Rows that break one rule: the first of them, and how many there are."""

    row: int
    column: str
    found: str
    rule: str
    remedy: str
    num_rows: int


class Offences:
    """The rules that rows break, in the order in which they were met; parts of a table are merged in row order."""

    def __init__(self) -> None:
        self._by_rule: dict[str, Offence] = {}

    def add(self, rows: NDArray[Any], *, column: str, found: str, rule: str, remedy: str) -> None:
        """Note `rows` [n] (ascending, not empty) that break `rule`; `found` is what stands in the first."""
        num_rows = len(np.unique(rows))
        self.merge([Offence(int(rows[0]), column, found, rule, remedy, num_rows)])

    def merge(self, later: "Offences | list[Offence]") -> None:
        """Add what was found in rows after those seen so far."""
        for offence in later._by_rule.values() if isinstance(later, Offences) else later:
            known = self._by_rule.setdefault(offence.rule, replace(offence, num_rows=0))
            self._by_rule[offence.rule] = replace(known, num_rows=known.num_rows + offence.num_rows)

    def __bool__(self) -> bool:
        return bool(self._by_rule)

    def refuse(self, table: Table) -> None:
        """Raise the BadInput of the first offence, if there was one; its rows are those of `table`."""
        for first in self._by_rule.values():
            raise BadInput(
                table.place(first.row, first.column),
                f"{first.found} ({first.num_rows} of {table.num_rows} rows)",
                rule=first.rule,
                remedy=first.remedy,
            )
