"""The bounded heap keeps the smallest keys, equal ones in the order they came."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sampling.bottom_k import emit, largest_room, offer


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 9))
def test_the_smallest_keys_are_kept_and_of_equal_ones_the_first(offered: list[int], room: int) -> None:
    keys, places = np.empty(room, dtype=np.uint64), np.empty(room, dtype=np.int64)
    size = 0
    for place, key in enumerate(offered):
        size = offer(keys, places, size, room, np.uint64(key), place)
    wanted = sorted(sorted(range(len(offered)), key=lambda place: (offered[place], place))[:room])
    position = np.full(room + 2, -1, dtype=np.int64)
    emit(places, size, 100, position, 1)
    assert position[1 : 1 + size].tolist() == [100 + place for place in wanted]
    assert position[0] == -1
    assert (position[1 + size :] == -1).all()


def test_the_largest_room_is_that_of_the_widest_row() -> None:
    assert largest_room(np.array([5, 5, 9, 12], dtype=np.int32), 3) == 4
    assert largest_room(np.array([5], dtype=np.int32), 0) == 0
