"""Writes the code graph: worker processes parse, this process looks names up and writes the tables."""

import multiprocessing
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from service.codegraph.chunks import ParsedChunk, parse_chunk, split_into_chunks
from service.codegraph.edges import resolve_edges
from service.codegraph.resolve import Kind, Resolver
from service.codegraph.sources import SourceFile, environment_roots, find_sources
from service.codegraph.tables import label_packages, unique_ids, write_classes, write_edges, write_nodes
from storage.errors import BadInput
from storage.place import Place
from storage.progress import Progress

MAX_FILE_BYTES = 1 << 20
MIN_CLASS_NODES = 200


@dataclass(frozen=True)
class CodeGraph:
    """What was written, and what was left out."""

    nodes: dict[str, str]
    """node type -> URL of its table, as `hopstream ingest --nodes` takes it; empty types are absent"""
    edges: dict[str, str]
    """``source:name:target`` -> URL of its table; empty relations are absent"""
    labels_file: str
    """URL of the JSON file with the class names"""
    num_nodes: dict[str, int]
    num_edges: dict[str, int]
    classes: tuple[str, ...]
    """label i is package classes[i]"""
    num_files: int
    """files read"""
    skipped_files: dict[str, int]
    """reason -> files"""
    num_calls: int
    """places in functions where something is called"""
    num_calls_resolved: int
    num_bases: int
    num_bases_resolved: int
    num_imports: int
    num_imports_resolved: int


def write_code_graph(
    out: str,
    *,
    roots: Sequence[Path] | None = None,
    include_tests: bool = False,
    min_class_nodes: int = MIN_CLASS_NODES,
    num_processes: int,
    progress: Progress,
) -> CodeGraph:
    """Write the node and edge tables of the Python code below `roots` into the folder `out`.

    The same files give the same bytes, whatever the number of processes and the place of the roots.

    Args:
        out: folder, any fsspec URL.
        roots: import roots, the first hides the later ones; by default the running interpreter's standard
            library and installed packages.
        include_tests: also read folders named test or tests (a third more).
        min_class_nodes: a top-level package with fewer nodes has label -1.
        num_processes: that parse; 1 parses in this process.
        progress: told of the stages parse (bytes), resolve and write (tables).

    Raises:
        BadInput: a root is no folder, or there is no readable Python module.
    """
    sources = find_sources(
        environment_roots() if roots is None else roots,
        include_tests=include_tests,
        max_file_bytes=MAX_FILE_BYTES,
    )
    chunks: list[ParsedChunk] = []
    work = split_into_chunks(sources.files)
    progress.stage("parse code", total=sum(file.num_bytes for file in sources.files), unit="B")
    for files, chunk in zip(work, _parse(work, num_processes=num_processes), strict=True):
        chunks.append(chunk)
        progress.advance(sum(file.num_bytes for file in files))
    skipped = Counter(sources.skipped)
    for chunk in chunks:
        skipped.update(chunk.skipped)

    files_read = [file for chunk in chunks for file in chunk.files]
    if not files_read:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        raise BadInput(
            str(sources.files[0].path),
            f"no readable module ({reasons})",
            rule="one is needed",
            remedy="name a folder of Python packages",
        )
    progress.stage("resolve names", total=len(chunks), unit="chunks")
    resolved = resolve_edges(chunks, Resolver(files_read), progress=progress)

    place = Place(out)
    ids: dict[Kind, list[str]] = {
        "module": [file.module for file in files_read],
        "class": unique_ids(f"{file.module}.{name}" for file in files_read for name in file.classes),
        "function": unique_ids(f"{file.module}.{name}" for file in files_read for name in file.functions),
    }
    kinds = [kind for kind in ids if ids[kind]]
    relations = [edges for edges in resolved.edges if len(edges.source)]
    classes = label_packages(ids, min_class_nodes=min_class_nodes)
    progress.stage("write tables", total=len(kinds) + len(relations), unit="tables")
    nodes: dict[str, str] = {}
    for kind in kinds:
        features = np.concatenate([_features(chunk, kind) for chunk in chunks])
        nodes[kind] = write_nodes(place, kind=kind, ids=ids[kind], features=features, classes=classes)
        progress.advance(1)
    arrow_ids = {kind: pa.array(ids[kind], pa.string()) for kind in kinds}
    edges: dict[str, str] = {}
    for relation in relations:
        edges[relation.relation] = write_edges(
            place,
            relation,
            source_ids=arrow_ids[relation.source_type],
            target_ids=arrow_ids[relation.target_type],
        )
        progress.advance(1)
    return CodeGraph(
        nodes=nodes,
        edges=edges,
        labels_file=write_classes(place, classes, min_class_nodes=min_class_nodes),
        num_nodes={kind: len(ids[kind]) for kind in kinds},
        num_edges={relation.relation: len(relation.source) for relation in relations},
        classes=classes,
        num_files=len(files_read),
        skipped_files=dict(sorted(skipped.items())),
        num_calls=resolved.num_calls,
        num_calls_resolved=resolved.num_calls_resolved,
        num_bases=resolved.num_bases,
        num_bases_resolved=resolved.num_bases_resolved,
        num_imports=resolved.num_imports,
        num_imports_resolved=resolved.num_imports_resolved,
    )


def _features(chunk: ParsedChunk, kind: Kind) -> NDArray[np.float16]:
    of_kind = {
        "module": chunk.module_features,
        "class": chunk.class_features,
        "function": chunk.function_features,
    }
    return of_kind[kind]


def _parse(work: Sequence[Sequence[SourceFile]], *, num_processes: int) -> Iterator[ParsedChunk]:
    """The parsed chunks, in the order of `work`."""
    if num_processes == 1:
        yield from map(parse_chunk, work)
        return
    # Spawned rather than forked: this process may hold threads and locks of numba, torch or Arrow.
    executor = ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_leave_interrupts_to_parent,
    )
    try:
        yield from executor.map(parse_chunk, work)
    finally:
        executor.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    """Ctrl-C reaches all processes of the terminal; one of them should answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
