"""Fan-outs: how many neighbours each hop draws in each relation, as users write them and as kernels read them."""

from collections.abc import Mapping, Sequence

from storage.errors import BadInput
from storage.schema import Relation

ALL_NEIGHBORS = -1
UNUSED = 0

HopFanout = int | Mapping[str, int]
"""one number for every relation, or a number for each relation by its name `source:name:target`"""


def fanouts_by_relation(fanouts: Sequence[HopFanout], relations: Sequence[Relation]) -> tuple[tuple[int, ...], ...]:
    """[H][R] neighbours to draw, from the seeds outward; -1 takes all, 0 leaves the relation out of the hop.

    A relation that a hop's mapping does not name is left out. Raises BadInput for a relation that the graph does not
    have, a number below -1, and a hop that draws nothing.
    """
    names = [str(relation) for relation in relations]
    found = []
    for hop, fanout in enumerate(fanouts):
        place = f"sampling.fanouts, hop {hop}"
        if isinstance(fanout, Mapping):
            unknown = [name for name in fanout if name not in names]
            if unknown:
                raise BadInput(
                    place,
                    f"unknown relation {unknown[0]!r}",
                    rule="fan-outs name relations of the graph",
                    remedy=f"the relations are {', '.join(names)}",
                )
            numbers = tuple(int(fanout.get(name, UNUSED)) for name in names)
        else:
            numbers = (int(fanout),) * len(names)
        for number in (fanout, *numbers) if isinstance(fanout, int) else numbers:
            if number < ALL_NEIGHBORS or (number == UNUSED and isinstance(fanout, int)):
                raise BadInput(
                    place,
                    f"fan-out {number}",
                    rule="a fan-out is at least 1, or -1 for all neighbours; 0 is for single relations only",
                    remedy="drop the hop or change the fan-out",
                )
        if names and not any(numbers):
            raise BadInput(
                place,
                "no relation is used",
                rule="a hop draws neighbours of at least one relation",
                remedy=f"drop the hop, or give one of {', '.join(names)} a fan-out other than 0",
            )
        found.append(numbers)
    return tuple(found)


def used_relations(fanouts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Numbers of the relations that some hop draws from, given [H][R] fan-outs."""
    return tuple(
        number
        for number, of_hops in enumerate(zip(*fanouts, strict=True))
        if any(fanout != UNUSED for fanout in of_hops)
    )
