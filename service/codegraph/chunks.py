"""Many files to one message: what a worker process sends back is a few arrays and lists rather than syntax.

Shapes: F files read, C classes, G functions, T distinct targets, D feature columns.
"""

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from service.codegraph.declarations import Definition, ParsedFile, Target
from service.codegraph.features import docstring_words, hash_words
from service.codegraph.package_names import WordsWithoutPackages
from service.codegraph.parse import UnreadableError, parse_file
from service.codegraph.sources import SourceFile

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileNames:
    """The names of one module."""

    module: str
    classes: tuple[str, ...]
    """inside the module, as in `Definition.name`"""
    class_parents: tuple[int, ...]
    """index in `classes`, or MODULE_LEVEL"""
    functions: tuple[str, ...]
    function_parents: tuple[int, ...]
    imports: tuple[str, ...]
    bindings: dict[str, str]
    star_imports: tuple[str, ...]


@dataclass(frozen=True)
class Uses:
    """Who names which target: calls by functions, bases of classes. Shape U: distinct pairs."""

    owner: NDArray[np.int32]
    """[U] the function, or the class, counted over the chunk"""
    target: NDArray[np.int32]
    """[U] index in the chunk's targets"""
    num_sites: NDArray[np.int32]
    """[U] how often it stands in the text"""


@dataclass(frozen=True)
class ParsedChunk:
    """Consecutive files; classes and functions are in the order of the files and of their text."""

    files: tuple[FileNames, ...]
    targets: tuple[Target, ...]
    """what calls name, then what only bases name"""
    num_call_targets: int
    calls: Uses
    bases: Uses
    module_features: NDArray[np.float16]
    """[F, D]"""
    class_features: NDArray[np.float16]
    """[C, D]"""
    function_features: NDArray[np.float16]
    """[G, D]"""
    skipped: dict[str, int]
    """reason -> files"""
    num_dynamic_calls: int


def split_into_chunks(files: Sequence[SourceFile]) -> list[tuple[SourceFile, ...]]:
    """Consecutive files of about CHUNK_BYTES together: depends on the files, not on the number of workers."""
    chunks: list[list[SourceFile]] = []
    num_bytes = CHUNK_BYTES
    for file in files:
        if num_bytes >= CHUNK_BYTES:
            chunks.append([])
            num_bytes = 0
        chunks[-1].append(file)
        num_bytes += file.num_bytes
    return [tuple(chunk) for chunk in chunks]


def parse_chunk(files: Sequence[SourceFile]) -> ParsedChunk:
    """Read and parse the files; the unreadable ones are counted."""
    skipped: Counter[str] = Counter()
    parsed: list[ParsedFile] = []
    with _without_cyclic_gc():
        for source in files:
            try:
                parsed.append(parse_file(source))
            except UnreadableError as reason:
                skipped[str(reason)] += 1
            except OSError:
                skipped["not readable"] += 1
    index_of_target: dict[Target, int] = {}
    classes = [definition for file in parsed for definition in file.classes]
    functions = [definition for file in parsed for definition in file.functions]
    calls = _uses(functions, index_of_target)
    num_call_targets = len(index_of_target)
    readers = [(file, WordsWithoutPackages(file.package_names)) for file in parsed]
    bases = _uses(classes, index_of_target)
    return ParsedChunk(
        files=tuple(_names(file) for file in parsed),
        targets=tuple(index_of_target),
        num_call_targets=num_call_targets,
        calls=calls,
        bases=bases,
        module_features=hash_words([_words(file.module, words) for file, words in readers]),
        class_features=hash_words([_words(d, words) for file, words in readers for d in file.classes]),
        function_features=hash_words([_words(d, words) for file, words in readers for d in file.functions]),
        skipped=dict(skipped),
        num_dynamic_calls=sum(function.num_dynamic_calls for function in functions),
    )


def _names(file: ParsedFile) -> FileNames:
    return FileNames(
        module=file.source.module,
        classes=tuple(definition.name for definition in file.classes),
        class_parents=tuple(definition.parent for definition in file.classes),
        functions=tuple(definition.name for definition in file.functions),
        function_parents=tuple(definition.parent for definition in file.functions),
        imports=tuple(dict.fromkeys(file.imports)),
        bindings=file.bindings,
        star_imports=tuple(file.star_imports),
    )


def _uses(definitions: Sequence[Definition], index_of_target: dict[Target, int]) -> Uses:
    owner: list[int] = []
    target: list[int] = []
    num_sites: list[int] = []
    for index, definition in enumerate(definitions):
        for wanted, count in definition.targets.items():
            owner.append(index)
            target.append(index_of_target.setdefault(wanted, len(index_of_target)))
            num_sites.append(count)
    return Uses(np.array(owner, np.int32), np.array(target, np.int32), np.array(num_sites, np.int32))


def _words(definition: Definition, words: WordsWithoutPackages) -> list[str]:
    return words.filter(chain(definition.words, docstring_words(definition.docstring)))


@contextmanager
def _without_cyclic_gc() -> Iterator[None]:
    """Syntax trees hold no cycles; looking for some takes a tenth of the parsing time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
