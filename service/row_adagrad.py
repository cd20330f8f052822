"""A step on the learned rows that a global batch has touched, and on no other: row-wise Adagrad.

    each rank's gradient rows -> all ranks' ids and rows, gathered -> one sum a touched row -> one step of each

Every rank holds the same rows and takes the same step. For a row w of C columns with the sum g of all its gradients in
the global step:

    s <- s + mean over columns of g^2,    w <- w - rate * g / (sqrt(s) + 1e-10)

with s = 0 at the start. Where g is 0 neither changes.
Source: Duchi et al., "Adaptive subgradient methods", JMLR 2011, with one sum for each row, as in PyTorch-BigGraph
(Lerer et al., SysML 2019): the state takes a Cth of what the rows take.

Shapes: n rows looked up, K distinct ones, V rows of a table, C columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sampling.batch import MiniBatch
from service.encoders.id_embedding import IdEmbedding
from service.group import Group
from storage.jit import kernel

EPSILON = 1e-10


@dataclass(frozen=True, eq=False)
class TouchedRows:
    """Rows of one type that a global step has read, with their gradient over all batches and ranks; on the CPU."""

    node_type: int
    ids: Tensor
    """int64 [K] ascending"""
    gradient: Tensor
    """[K, C]"""

    @property
    def holder(self) -> Tensor:
        """What torch's clipping takes for a parameter: its `grad` is `gradient`, changed in place."""
        holder = torch.empty_like(self.gradient)
        holder.grad = self.gradient
        return holder


class RowGradients:
    """Gradients of the learned rows over the batches of a global step, as each rank finds them."""

    def __init__(self, table: IdEmbedding | None) -> None:
        """`table`: None where nothing is learned by id."""
        numbers = () if table is None else table.rows
        self._found: dict[int, list[tuple[Tensor, Tensor]]] = {number: [] for number in numbers}

    def add(self, batch: MiniBatch) -> None:
        """Take the gradients of a batch behind its backward pass."""
        for number, found in self._found.items():
            rows = batch.learned[number]
            assert rows is not None
            gradient = torch.zeros_like(rows) if rows.grad is None else rows.grad
            found.append((batch.node_id[batch.node_type == number], gradient))

    def touched(self, *, scale: float, group: Group) -> tuple[TouchedRows, ...]:
        """The sum over batches and ranks, times `scale`, of each type; every rank must call it and gets the same bits.

        What crosses ranks is each rank's ids and gradient rows.
        """
        touched = []
        for number, found in self._found.items():
            ids, gradient = torch.cat([ids for ids, _ in found]), torch.cat([rows for _, rows in found])
            if len(found) > 1 and group.world_size > 1:  # less crosses ranks
                ids, gradient = (part.to(ids.device) for part in sum_rows(ids, gradient))
            ids, gradient = sum_rows(group.gather_rows(ids), group.gather_rows(gradient))
            touched.append(TouchedRows(number, ids, gradient.mul_(scale)))
        return tuple(touched)


def sum_rows(ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids int64 [K], ascending, and for each the sum [K, C] of its rows [n, C], in their order; on the CPU."""
    distinct, place = torch.unique(ids.cpu(), return_inverse=True)
    total = torch.zeros((distinct.shape[0], rows.shape[1]), dtype=rows.dtype)
    _add_rows(place.numpy(), rows.detach().cpu().contiguous().numpy(), total.numpy())
    return distinct, total


def step_rows(table: IdEmbedding, touched: Sequence[TouchedRows], *, learning_rate: float) -> None:
    """Move the touched rows of `table`, in place."""
    for one in touched:
        rows, squares = table.rows[one.node_type], table.squares[one.node_type]
        _step_rows(one.ids.numpy(), one.gradient.numpy(), learning_rate, rows.numpy(), squares.numpy())


@kernel
def _add_rows(place: NDArray[np.int64], rows: NDArray[Any], total: NDArray[Any]) -> None:
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            total[place[row], column] += rows[row, column]


@kernel
def _step_rows(
    ids: NDArray[np.int64], gradient: NDArray[Any], rate: float, rows: NDArray[Any], squares: NDArray[Any]
) -> None:
    # in float64 and in a fixed order, so that processors of several kinds end with the same bits
    num_columns = gradient.shape[1]
    for place in range(ids.shape[0]):
        square = 0.0
        for column in range(num_columns):
            square += np.float64(gradient[place, column]) * np.float64(gradient[place, column])
        if square == 0.0:
            continue
        row = ids[place]
        squares[row] += square / num_columns
        scale = rate / (math.sqrt(np.float64(squares[row])) + EPSILON)
        for column in range(num_columns):
            rows[row, column] = np.float64(rows[row, column]) - scale * np.float64(gradient[place, column])
