"""Columns of a PyG or DGL object, checked: what can be written as interchange tables, and what cannot.

Shapes: N nodes of a type, E edges of a relation, D columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storage.columns import SPLITS
from storage.errors import BadInput
from storage.schema import Relation

STORED = (torch.float32, torch.float16, torch.uint8, torch.int8)
MASKED = SPLITS[:-1]
"""splits that have a mask; nodes in none of them are in the last"""


@dataclass(frozen=True)
class ColumnNames:
    """Under which names an object holds what a store can hold; a name that it lacks is passed over."""

    features: str
    label: str
    train: str
    val: str
    test: str
    node_time: str
    edge_time: str
    weight: str
    ids: str | None = None
    """the user's own ids, int64; None: nodes are numbered from 0 as in the object"""

    @property
    def masks(self) -> dict[str, str]:
        """Name of the mask of each split."""
        return dict(zip(MASKED, (self.train, self.val, self.test), strict=True))


@dataclass(frozen=True)
class NodeColumns:
    """A node type; row i of every column belongs to node i of the object."""

    name: str
    num_nodes: int
    ids: Tensor | None
    """int64 [N]; None: the numbers of the nodes"""
    features: Tensor | None
    """[N, D]"""
    label: Tensor | None
    """int64 [N], -1 unknown"""
    split: Tensor | None
    """uint8 [N]: 0 train, 1 val, 2 test, 3 none"""
    timestamp: Tensor | None
    """int64 [N]"""


@dataclass(frozen=True)
class EdgeColumns:
    """An edge type, in the object's order of edges; ends are numbers of nodes in the object."""

    relation: Relation
    source: Tensor
    """[E]"""
    target: Tensor
    """[E]"""
    weight: Tensor | None
    """float [E]"""
    timestamp: Tensor | None
    """int64 [E]"""


def node_columns(
    name: str, num_nodes: int, data: Mapping[str, Any], names: ColumnNames, *, converts: bool
) -> NodeColumns:
    """The columns of a node type that `data` (name -> tensor) holds.

    Args:
        converts: features of dtypes that a store does not hold are taken, because ingest converts them.

    Raises BadInput for what the tables cannot say, e.g. labels of several columns, or masks that overlap.
    """
    place = f"node type {name}"
    if num_nodes < 1:
        raise BadInput(place, "no nodes", rule="a node type has at least one node", remedy="remove the type")

    def column(key: str | None) -> Tensor | None:
        return None if key is None or key not in data else tensor(data[key], f"{place}, {key}", rows=num_nodes)

    ids, features, label, time = (column(key) for key in (names.ids, names.features, names.label, names.node_time))
    masks = {split: (key, column(key)) for split, key in names.masks.items()}
    return NodeColumns(
        name=name,
        num_nodes=num_nodes,
        ids=None if ids is None else integers(ids, f"{place}, {names.ids}"),
        features=None if features is None else _features(features, f"{place}, {names.features}", converts=converts),
        label=None if label is None else _labels(label, f"{place}, {names.label}"),
        split=_split(masks, place, num_nodes),
        timestamp=None if time is None else integers(time, f"{place}, {names.node_time}"),
    )


def edge_columns(
    relation: Relation, source: Tensor, target: Tensor, data: Mapping[str, Any], names: ColumnNames
) -> EdgeColumns:
    """The columns of an edge type that `data` (name -> tensor) holds; BadInput as `node_columns`."""
    place = f"relation {relation}"
    if not source.shape[0]:
        raise BadInput(place, "no edges", rule="a relation has at least one edge", remedy="remove the edge type")

    def column(key: str) -> Tensor | None:
        return None if key not in data else tensor(data[key], f"{place}, {key}", rows=source.shape[0])

    weight, time = column(names.weight), column(names.edge_time)
    return EdgeColumns(
        relation=relation,
        source=integers(source, f"{place}, sources"),
        target=integers(target, f"{place}, targets"),
        weight=None if weight is None else _flat(weight, f"{place}, {names.weight}", what="weight"),
        timestamp=None if time is None else integers(time, f"{place}, {names.edge_time}"),
    )


def are_converted(settings: Mapping[str, Any]) -> bool:
    """Whether an ingest with these settings takes features of dtypes that a store does not hold."""
    return bool(settings.get("feature_dtype") or settings.get("quantize"))


def check_names(names: ColumnNames, usual: ColumnNames, found: set[str]) -> None:
    """BadInput for a name that was asked for and that no node or edge type has."""
    for field, name in vars(names).items():
        if name is not None and name != vars(usual)[field] and name not in found:
            raise BadInput(
                f"{field}={name!r}",
                "in no node or edge type",
                rule=f"the object holds {', '.join(sorted(found)) or 'no columns'}",
                remedy="name one of them, or leave the name as it is",
            )


def tensor(value: Any, place: str, *, rows: int) -> Tensor:
    """A dense tensor (or NumPy array) with `rows` rows; BadInput otherwise."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        kind = value.layout if isinstance(value, Tensor) else type(value).__name__
        raise BadInput(place, f"{kind}", rule="columns are dense tensors", remedy="convert it, or remove it")
    if value.dim() == 0 or value.shape[0] != rows:
        raise BadInput(
            place,
            f"shape {tuple(value.shape)}",
            rule=f"a column has a row for each of the {rows}",
            remedy="correct the column or num_nodes, or remove the column",
        )
    return value.detach()


def integers(value: Tensor, place: str) -> Tensor:
    """int64 [n]; BadInput for other types and shapes."""
    flat = _flat(value, place, what="value")
    if flat.is_floating_point() or flat.is_complex():
        raise BadInput(place, f"{flat.dtype}", rule="values are integers", remedy="cast it to int64, or remove it")
    return flat.to(torch.int64)


def _flat(value: Tensor, place: str, *, what: str) -> Tensor:
    if value.dim() == 1:
        return value
    if value.dim() == 2 and value.shape[1] == 1:
        return value[:, 0]
    raise BadInput(
        place,
        f"shape {tuple(value.shape)}",
        rule=f"there is one {what} for each row",
        remedy="choose one column of it, or remove it",
    )


def _features(value: Tensor, place: str, *, converts: bool) -> Tensor:
    if value.dim() == 1:
        value = value[:, None]
    if value.dim() != 2 or value.shape[1] == 0:
        raise BadInput(
            place,
            f"shape {tuple(value.shape)}",
            rule="features are rows of numbers",
            remedy="reshape it to [nodes, columns], or remove it",
        )
    if value.dtype not in STORED and not converts:
        raise BadInput(
            place,
            f"{value.dtype}",
            rule=f"features are stored as {', '.join(str(each).removeprefix('torch.') for each in STORED)}",
            remedy='give feature_dtype="float32", or cast the features',
        )
    return value


def _labels(value: Tensor, place: str) -> Tensor:
    """Integers as they are; floats when they are whole numbers, NaN being unknown, as OGB has them."""
    flat = _flat(value, place, what="label")
    if not flat.is_floating_point():
        return integers(flat, place)
    known = torch.where(flat.isnan(), torch.full_like(flat, -1), flat)
    if not bool((known == known.round()).all()):
        raise BadInput(
            place,
            f"{flat.dtype} with fractions",
            rule="labels are whole numbers, -1 (or NaN) where unknown",
            remedy="number the classes, or leave out the labels",
        )
    return known.to(torch.int64)


def _split(masks: Mapping[str, tuple[str, Tensor | None]], place: str, num_nodes: int) -> Tensor | None:
    if all(mask is None for _, mask in masks.values()):
        return None
    no_split = len(MASKED)
    split = torch.full((num_nodes,), no_split, dtype=torch.uint8)
    for code, name in enumerate(MASKED):
        key, mask = masks[name]
        if mask is None:
            continue
        chosen = _flat(mask, f"{place}, {key}", what="bool").to(torch.bool).cpu()
        both = int((split[chosen] != no_split).sum())
        if both:
            raise BadInput(
                f"{place}, {key}",
                f"{both} nodes that are in another mask too",
                rule="a node is in one of train, val and test at most",
                remedy="make the masks disjoint, or remove them",
            )
        split[chosen] = code
    return split
