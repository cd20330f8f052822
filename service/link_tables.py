"""Tables of held-out edges: which relation they are of, and their pairs in a store's dense ids."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage import columns
from storage.errors import BadInput
from storage.store import Store
from storage.tables import open_table

READ_ROWS = 1 << 18


def relation_index(
    store: Store,
    name: str | None,
    *,
    key: str = "evaluation.link.relation",
    remedy: str = "choose the one whose edges are held out",
) -> int:
    """Number of the relation `name`, or of the only one there is apart from its reverse; BadInput lists them.

    Args:
        key, remedy: what is said of a run file that names none of them.
    """
    names = [str(info.relation) for info in store.relations]
    if name is None:
        first = next(iter(store.relations), None)
        if first and all(first.relation in (info.relation, info.reverse_of) for info in store.relations):
            return 0
    elif name in names:
        return names.index(name)
    raise BadInput(
        key,
        "not given" if name is None else f"{name} is unknown",
        rule=f"relations of this store: {', '.join(names) or 'none'}",
        remedy=remedy,
    )


def is_symmetric(store: Store, index: int) -> bool:
    """Whether a relation holds the reverse of each of its edges."""
    info = store.relations[index]
    return info.reverse_of == info.relation


def read_pairs(
    store: Store, index: int, url: str, *, unknown: Literal["refuse", "drop"] = "refuse"
) -> NDArray[np.int64]:
    """Distinct pairs [n, 2], ascending, of the table at `url` (columns src, dst: the user's ids) in relation `index`.

    Args:
        unknown: whether an id that the store does not know is BadInput, or its pairs are dropped.

    Raises BadInput for a table of self-loops only.
    """
    relation = store.relations[index].relation
    table = open_table(url, required=("src", "dst"))
    ends = []
    for column, node_type in (("src", relation.source), ("dst", relation.target)):
        kind = columns.id_type(table, column)
        chunks = [columns.ids(batch.column(0), kind=kind) for _, batch in table.batches([column], max_rows=READ_ROWS)]
        try:
            ends.append(find(store, node_type, pa.chunked_array(chunks), unknown=unknown))
        except BadInput as error:
            place = f"{table.url}, column {column}: {error.place}"
            raise BadInput(place, error.found, rule=error.rule, remedy=error.remedy) from None
    pairs = np.stack(ends, axis=1)
    pairs = pairs[(pairs >= 0).all(axis=1)]
    if relation.source == relation.target:
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if not pairs.shape[0] and unknown == "refuse":
        raise BadInput(
            table.url,
            f"{table.num_rows} self-loops",
            rule="held-out edges join two nodes",
            remedy="hold out other edges",
        )
    return distinct(np.sort(pairs, axis=1) if is_symmetric(store, index) else pairs)


def find(
    store: Store, node_type: str, ids: pa.ChunkedArray, *, unknown: Literal["refuse", "drop"]
) -> NDArray[np.int64]:
    """Dense ids [n] of the user's ids [n]; under drop -1 for those that the store does not know."""
    if unknown == "refuse":
        return store.rows_of(node_type, ids)
    rows = np.full(len(ids), -1, dtype=np.int64)
    whole = ids.combine_chunks()
    if (store.node_type(node_type).id_type == "int64") != pa.types.is_integer(whole.type):
        return rows  # ids of another type are none of the store's
    is_known = np.zeros(len(whole), dtype=np.bool_)
    for batch in store.id_batches(node_type, rows_per_batch=READ_ROWS):
        is_known |= pc.is_in(whole, value_set=batch.cast(whole.type)).to_numpy(zero_copy_only=False)
    rows[is_known] = store.rows_of(node_type, whole.filter(pa.array(is_known)))
    return rows


def distinct(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pairs [n, 2] without duplicates, ascending."""
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    is_new = np.ones(ordered.shape[0], dtype=np.bool_)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.asarray(ordered[is_new])
