"""A bounded queue between two threads of a pipeline, which tells both sides when the other has ended or failed."""

import time
from collections import deque
from collections.abc import Iterator
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class ChannelClosed(Exception):
    """The reader has gone: nothing more need be made."""


class Channel(Generic[T]):
    """At most `capacity` items wait in it; one thread puts, one takes.

    `put_seconds` and `get_seconds` are what the two sides waited for each other.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity >= 1
        self.put_seconds = 0.0
        self.get_seconds = 0.0
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = Condition()
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None

    def wait_for_room(self) -> None:
        """Return when an item could be put; raises ChannelClosed when the reader has gone."""
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            self.put_seconds += time.perf_counter() - began
            if self._closed:
                raise ChannelClosed

    def put(self, item: T) -> None:
        """Add an item when there is room; raises ChannelClosed when the reader has gone."""
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            self.put_seconds += time.perf_counter() - began
            if self._closed:
                raise ChannelClosed
            self._items.append(item)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """No item follows; with `error`, the reader gets that after the items that are there."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """The reader goes; items that wait are thrown away."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """The reader has gone."""
        return self._closed

    def get(self) -> T | None:
        """The next item, or None behind the last; raises the writer's error in its place."""
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended or self._closed)
            self.get_seconds += time.perf_counter() - began
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._closed:
                raise ChannelClosed
            if self._error is not None:
                raise self._error
            return None

    def __iter__(self) -> Iterator[T]:
        """Every item, to the end."""
        while (item := self.get()) is not None:
            yield item
