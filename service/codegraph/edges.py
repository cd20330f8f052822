"""The relations of the code graph, as rows of the node tables."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.codegraph.chunks import FileNames, ParsedChunk
from service.codegraph.declarations import MODULE_LEVEL
from service.codegraph.resolve import Kind, Resolver
from storage.progress import Progress


@dataclass(frozen=True)
class Edges:
    """One relation, sorted by source then target, each pair once. Shape E: edges."""

    source_type: Kind
    name: str
    target_type: Kind
    source: NDArray[np.int64]
    """[E] row of the source"""
    target: NDArray[np.int64]
    """[E] row of the target"""

    @property
    def relation(self) -> str:
        """``source:name:target``, as `hopstream ingest --edges` takes it."""
        return f"{self.source_type}:{self.name}:{self.target_type}"


@dataclass(frozen=True)
class ResolvedEdges:
    """All relations, and how many of the places in the text that name something led to a node."""

    edges: tuple[Edges, ...]
    num_calls: int
    num_calls_resolved: int
    num_bases: int
    num_bases_resolved: int
    num_imports: int
    num_imports_resolved: int


def resolve_edges(chunks: Sequence[ParsedChunk], resolver: Resolver, *, progress: Progress) -> ResolvedEdges:
    """Look up every base, import and call; what is not found is dropped and counted, self-loops dropped."""
    files = [file for chunk in chunks for file in chunk.files]
    inherits, num_bases, num_bases_resolved = _inherits(chunks, resolver)
    imports, num_imports, num_imports_resolved = _imports(files, resolver)
    calls, num_calls, num_calls_resolved = _calls(chunks, resolver, progress=progress)
    return ResolvedEdges(
        edges=(*_contains(files), imports, *calls, inherits),
        num_calls=num_calls,
        num_calls_resolved=num_calls_resolved,
        num_bases=num_bases,
        num_bases_resolved=num_bases_resolved,
        num_imports=num_imports,
        num_imports_resolved=num_imports_resolved,
    )


def _contains(files: Sequence[FileNames]) -> list[Edges]:
    pairs: dict[tuple[Kind, Kind], list[tuple[int, int]]] = {
        ("module", "class"): [],
        ("module", "function"): [],
        ("class", "class"): [],
        ("class", "function"): [],
    }
    first_class = first_function = 0
    for module, file in enumerate(files):
        of_kind: tuple[tuple[Kind, int, tuple[int, ...]], ...] = (
            ("class", first_class, file.class_parents),
            ("function", first_function, file.function_parents),
        )
        for kind, first, parents in of_kind:
            for row, parent in enumerate(parents, start=first):
                if parent == MODULE_LEVEL:
                    pairs["module", kind].append((module, row))
                else:
                    pairs["class", kind].append((first_class + parent, row))
        first_class += len(file.classes)
        first_function += len(file.functions)
    return [_edges(source, "contains", target, np.array(rows)) for (source, target), rows in pairs.items()]


def _inherits(chunks: Sequence[ParsedChunk], resolver: Resolver) -> tuple[Edges, int, int]:
    pairs: list[tuple[int, int]] = []
    bases: dict[int, list[int]] = {}
    num_sites = num_resolved = first_class = 0
    for chunk in chunks:
        for owner, index in zip(chunk.bases.owner.tolist(), chunk.bases.target.tolist(), strict=True):
            node = resolver.find(chunk.targets[index])
            num_sites += 1
            if node is not None and node.kind == "class":
                num_resolved += 1
                pairs.append((first_class + owner, node.row))
                bases.setdefault(first_class + owner, []).append(node.row)
        first_class += len(chunk.class_features)
    resolver.set_bases(bases)
    return _edges("class", "inherits", "class", np.array(pairs)), num_sites, num_resolved


def _imports(files: Sequence[FileNames], resolver: Resolver) -> tuple[Edges, int, int]:
    pairs: list[tuple[int, int]] = []
    num_sites = 0
    for row, file in enumerate(files):
        num_sites += len(file.imports)
        found = (resolver.find_module(path) for path in file.imports)
        pairs.extend((row, imported) for imported in found if imported is not None)
    return _edges("module", "imports", "module", np.array(pairs)), num_sites, len(pairs)


def _calls(chunks: Sequence[ParsedChunk], resolver: Resolver, *, progress: Progress) -> tuple[list[Edges], int, int]:
    kinds: tuple[Kind, ...] = ("function", "class")
    pairs: dict[Kind, list[NDArray[np.int64]]] = {kind: [] for kind in kinds}
    num_sites = num_resolved = first_function = 0
    for chunk in chunks:
        calls = chunk.calls
        num_sites += int(calls.num_sites.sum()) + chunk.num_dynamic_calls
        nodes = [resolver.find(chunk.targets[index]) for index in range(chunk.num_call_targets)]
        for kind in kinds:
            row_of_target = np.array(
                [node.row if node is not None and node.kind == kind else -1 for node in nodes], np.int64
            )
            called = row_of_target[calls.target]
            is_found = called >= 0
            num_resolved += int(calls.num_sites[is_found].sum())
            pairs[kind].append(np.stack([first_function + calls.owner, called], axis=1)[is_found])
        first_function += len(chunk.function_features)
        progress.advance(1)
    edges = [_edges("function", "calls", kind, np.concatenate(pairs[kind])) for kind in kinds]
    return edges, num_sites, num_resolved


def _edges(source_type: Kind, name: str, target_type: Kind, pairs_E2: NDArray[np.int64]) -> Edges:
    pairs_E2 = pairs_E2.reshape(-1, 2).astype(np.int64)
    if source_type == target_type:
        pairs_E2 = pairs_E2[pairs_E2[:, 0] != pairs_E2[:, 1]]
    keys = np.unique(pairs_E2[:, 0] << 32 | pairs_E2[:, 1])
    return Edges(source_type, name, target_type, source=keys >> 32, target=keys & 0xFFFFFFFF)
