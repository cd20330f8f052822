"""Learned rows: one for each node of a type without features, looked up by the node's id.

They are kept in host memory and are no parameters: no dense gradient, no DDP bucket and no weight decay ever touches
them. A batch carries copies of the rows of its nodes as leaves of autograd; what a step does with their
gradients is in `service.row_adagrad`.

Shapes: V nodes of a type, n of them in a batch, C columns of a row.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sampling.batch import MiniBatch
from sampling.keys import subkey
from sampling.masks import node_keys
from sampling.normal_rows import normals
from service.encoders.config import EncoderConfig
from service.schema import GraphSchema, NodeTypeSchema
from storage.errors import BadInput

ROWS_TAG = 0x1D_0E
"""keeps the keys of initial rows apart from those of steps, which fold in the seed too"""
ROWS_AT_ONCE = 65536
FLOAT_BYTES = 4


class IdEmbedding(nn.Module):
    """The learned rows of one graph, and the sums of squared gradients that their optimiser keeps for each.

    A module without parameters and buffers, so that neither devices, DDP nor an optimiser of torch take hold of the
    rows; they are in its state all the same.
    """

    def __init__(self, kinds: Mapping[int, NodeTypeSchema], *, dim: int, seed: int) -> None:
        """Rows are normal with an expected squared length of 1, drawn by (seed, type, id).

        Args:
            kinds: node types by number, with their `num_nodes`.
        """
        super().__init__()
        self.dim = dim
        self.kinds = dict(kinds)
        self.rows = {
            number: initial_rows(number, _num_nodes(kind), dim=dim, seed=seed) for number, kind in kinds.items()
        }
        """float32 [V, C] by number of the type"""
        # filled, as memory that was never written is counted nowhere
        self.squares = {number: torch.empty(_num_nodes(kind)).fill_(0.0) for number, kind in kinds.items()}
        """float32 [V] by number of the type"""

    @property
    def num_entries(self) -> int:
        """Numbers in all rows."""
        return sum(table.numel() for table in self.rows.values())

    def look_up(self, batch: MiniBatch, *, dtype: torch.dtype) -> MiniBatch:
        """`batch` with `learned`: copies of its nodes' rows, leaves that gather a gradient where that is enabled."""
        learned: list[Tensor | None] = [None] * len(batch.features)
        for number, table in self.rows.items():
            ids = batch.node_id[batch.node_type == number]
            rows = table.index_select(0, ids.cpu()).to(ids.device, dtype)
            learned[number] = rows.requires_grad_(torch.is_grad_enabled())
        return replace(batch, learned=tuple(learned))

    def refuse_other_nodes(self, schema: GraphSchema, *, place: str) -> None:
        """Raise BadInput where the nodes of `schema` are not those that have the rows, under the same numbers."""
        for number, kind in self.kinds.items():
            other = schema.node_types[number]
            if (other.num_nodes, other.numbering) != (kind.num_nodes, kind.numbering):
                raise other_nodes(place, kind.name, num_rows=_num_nodes(kind), num_nodes=_num_nodes(other))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Put "<type>.rows", "<type>.squares" and "<type>.numbering" of each type into a module's state."""
        for number, kind in self.kinds.items():
            destination[f"{prefix}{kind.name}.rows"] = self.rows[number]
            destination[f"{prefix}{kind.name}.squares"] = self.squares[number]
            destination[f"{prefix}{kind.name}.numbering"] = _as_tensor(kind.numbering)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Take the rows of a state, in place; nodes that the store has got since keep their initial rows.

        Raises BadInput where they belong to other nodes, are of another width or are missing.
        """
        for number, kind in self.kinds.items():
            parts = ("rows", "squares", "numbering")
            rows, squares, numbering = (state_dict.get(f"{prefix}{kind.name}.{part}") for part in parts)
            if rows is None or squares is None or numbering is None or rows.shape[1] != self.dim:
                raise BadInput(
                    f"encoder.id_embedding_dim={self.dim}",
                    f"no learned rows of that width for node type {kind.name} in the checkpoint",
                    rule="a checkpoint holds the rows that its run asked for",
                    remedy="use the settings that it was trained with",
                )
            count, num_nodes = rows.shape[0], self.rows[number].shape[0]
            same = torch.equal(_as_tensor(kind.numbering)[: numbering.shape[0]], numbering.cpu())
            if count > num_nodes or not same:
                raise other_nodes("checkpoint", kind.name, num_rows=count, num_nodes=num_nodes)
            self.rows[number][:count] = rows
            self.squares[number][:count] = squares


def make_id_embedding(config: EncoderConfig, *, schema: GraphSchema, seed: int) -> IdEmbedding | None:
    """The initial rows that the section asks for; None where it asks for none. Raises BadInput as `id_types`."""
    if config.id_embedding_dim is None:
        return None
    kinds = {number: schema.node_types[number] for number in id_types(config, schema)}
    return IdEmbedding(kinds, dim=config.id_embedding_dim, seed=seed)


def id_types(config: EncoderConfig, schema: GraphSchema) -> tuple[int, ...]:
    """Numbers of the node types that have learned rows.

    Raises BadInput where the section names an unknown type or one with features, or the graph has none without.
    """
    if config.id_embedding_dim is None:
        return ()
    names = [kind.name for kind in schema.node_types]
    bare = [kind.name for kind in schema.node_types if kind.feature_dim is None]
    wrong = [name for name in config.id_embedding_types if name not in bare]
    if wrong:
        raise BadInput(
            f"encoder.id_embedding_types={list(config.id_embedding_types)}",
            f"node type {wrong[0]} {'has features' if wrong[0] in names else 'is unknown'}",
            rule="learned rows are for node types without features",
            remedy=f"choose among {', '.join(bare)}" if bare else "leave encoder.id_embedding_dim unset",
        )
    if not bare:
        raise BadInput(
            f"encoder.id_embedding_dim={config.id_embedding_dim}",
            f"features on every node type ({', '.join(names)})",
            rule="learned rows are for node types without features",
            remedy="leave encoder.id_embedding_dim unset",
        )
    chosen = config.id_embedding_types or bare
    return tuple(number for number, name in enumerate(names) if name in chosen)


def table_bytes(config: EncoderConfig, schema: GraphSchema) -> int:
    """Memory of the rows and of what their optimiser keeps; a checkpoint being written or read takes as much again."""
    columns = 0 if config.id_embedding_dim is None else config.id_embedding_dim + 1
    return FLOAT_BYTES * columns * sum(_num_nodes(schema.node_types[number]) for number in id_types(config, schema))


def initial_rows(node_type: int, num_nodes: int, *, dim: int, seed: int) -> Tensor:
    """float32 [V, C]: normal numbers of deviation 1 / sqrt(C), each from (seed, type, id, column)."""
    salt = int(subkey(np.uint64(seed), ROWS_TAG))
    rows = torch.empty((num_nodes, dim))
    for first in range(0, num_nodes, ROWS_AT_ONCE):
        ids = torch.arange(first, min(first + ROWS_AT_ONCE, num_nodes))
        keys = node_keys(torch.full_like(ids, node_type), ids)
        rows[first : first + ROWS_AT_ONCE] = normals(keys, salt=salt, num_columns=dim) * dim**-0.5
    return rows


def other_nodes(place: str, name: str, *, num_rows: int, num_nodes: int) -> BadInput:
    """The error of learned rows and a store whose nodes have other numbers."""
    return BadInput(
        place,
        f"learned rows of {num_rows} nodes of type {name}, and {num_nodes} such nodes under other numbers",
        rule="a row belongs to one node of the store that was trained on, which keeps its number over refresh, delete "
        "and append, and not over compact",
        remedy="use the store and generation trained on; one that was appended to is first trained on, with "
        "run.continue_from, where new nodes begin with fresh rows",
    )


def _num_nodes(kind: NodeTypeSchema) -> int:
    assert kind.num_nodes is not None, f"{kind.name}: the schema is not of a store"
    return kind.num_nodes


def _as_tensor(numbering: tuple[str, ...]) -> Tensor:
    """int64 [segments]."""
    return torch.from_numpy(np.array([int(part, 16) for part in numbering], dtype=np.uint64).view(np.int64))
