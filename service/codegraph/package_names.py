"""Keeps out of the features what would tell the label: the names of the file's own and of imported packages.

They are taken out of every identifier and docstring word, not only where they stand alone: of `zorg_helper` and
`ZorgError` in package `zorg` remain `helper` and `error`, and of `NumPy` in a file that imports numpy nothing.
"""

from collections.abc import Iterable

from service.codegraph.features import split_identifier


class WordsWithoutPackages(dict[str, tuple[str, ...]]):
    """word -> its parts, as in `split_identifier`, less those that name a package; one per file, filled as asked.

    A part is hidden when it is a part of a package's name (`client` of prometheus_client) and when it and its
    neighbours spell one (`Num` and `Py`).

    Args:
        package_names: as the file writes them, aliases too.
    """

    def __init__(self, package_names: Iterable[str]) -> None:
        super().__init__()
        parts = [split_identifier(name) for name in package_names]
        self.hidden = frozenset([part for name in parts for part in name] + ["".join(name) for name in parts])

    def __missing__(self, word: str) -> tuple[str, ...]:
        parts = split_identifier(word)
        kept: list[str] = []
        at = 0
        while at < len(parts):
            end = self._end_of_name(parts, at)
            if end == at:
                kept.append(parts[at])
                end += 1
            at = end
        self[word] = tuple(kept)
        return self[word]

    def _end_of_name(self, parts: list[str], at: int) -> int:
        """Where the longest package name that starts at part `at` ends; `at` where none does."""
        for end in range(len(parts), at, -1):
            if "".join(parts[at:end]) in self.hidden:
                return end
        return at

    def filter(self, words: Iterable[str]) -> list[str]:
        """The parts that remain of all the words, repeated as often as they stand there."""
        return [part for word in words for part in self[word]]
