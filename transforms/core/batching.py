"""An ordered, bounded parallel map, and batches of equal shapes."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

from transforms.core.errors import ImagebeamError
from transforms.core.field_types import plain

BYTES_AHEAD = 256 << 20
"""Bytes of records that wait for the model at most: a few records may be as large as many."""

MODEL_CALLS = 2
"""Batches with the model at once: while a device computes for the one, the other's is copied."""

T = TypeVar("T")
R = TypeVar("R")


def positive(name: str, value: object) -> int:
    """Return a number of images or rows, NumPy's as Python's.

    Raises:
        ImagebeamError: for what is no whole number from 1, naming the option and the value.
    """
    number = plain(value)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ImagebeamError(f"{name} is a whole number, at least 1. Received: {value!r}.")
    return number


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def decode_pool() -> ThreadPoolExecutor:
    """The process's one pool of decode threads, shared by every unit in flight: one thread a core."""
    return ThreadPoolExecutor(available_cores(), thread_name_prefix="decode")


class _Room:
    """A bound on a number of items and on their bytes. An item larger than the bound is let in alone.

    One thread takes and another one gives back.
    """

    def __init__(self, items: int, total: int) -> None:
        self._items_left, self._total = items, total
        self._held = 0
        self._changed = threading.Condition()
        self._lifted = False

    def take(self, size: int) -> None:
        """Wait until there is room for an item."""
        with self._changed:
            while not self._lifted and (not self._items_left or (self._held and self._held + size > self._total)):
                self._changed.wait()
            self._items_left -= 1
            self._held += size

    def give_back(self, size: int) -> None:
        with self._changed:
            self._items_left += 1
            self._held -= size
            self._changed.notify()

    def lift(self) -> None:
        """Release all waiting threads."""
        with self._changed:
            self._lifted = True
            self._changed.notify()


class MapAhead(Iterator[R]):
    """Like ``map(function, items)``, computed ahead of the consumer; it begins at once.

    `items` is drawn in a thread of its own, so that reading overlaps too, and `function` runs in `pool`. At most
    `limit` items are between being drawn and being consumed: that bounds the memory. Order is kept. An exception
    of `items` or `function` is raised at its place. After one, or when it is closed early, the drawing has stopped,
    calls of `function` that have not begun never will, and `items` is closed where it is a generator.

    Args:
        function: to call.
        items: to call it with.
        pool: that calls it.
        limit: items drawn and not yet consumed at most.
        size_of: bytes that an item holds, of which there are `BYTES_AHEAD` at most, or one item.
    """

    def __init__(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        pool: Executor,
        limit: int,
        size_of: Callable[[T], int] = lambda _: 0,
    ) -> None:
        self._ready: queue.SimpleQueue[tuple[Future[R], int] | BaseException | None] = queue.SimpleQueue()
        self._room = _Room(limit, BYTES_AHEAD)
        self._stopped = threading.Event()
        self._items = items

        def draw() -> None:
            end: BaseException | None = None
            try:
                for item in items:
                    size = size_of(item)
                    self._room.take(size)
                    if self._stopped.is_set():
                        break
                    self._ready.put((pool.submit(function, item), size))
            except BaseException as error:
                end = error
            self._ready.put(end)

        self._drawer = threading.Thread(target=draw, name="read-ahead", daemon=True)
        self._drawer.start()

    def __next__(self) -> R:
        if self._stopped.is_set():
            raise StopIteration
        drawn = self._ready.get()
        try:
            if isinstance(drawn, BaseException):
                raise drawn
            if drawn is not None:
                result = drawn[0].result()
                self._room.give_back(drawn[1])
                return result
        except StopIteration as error:
            self.close()
            raise RuntimeError("StopIteration in what runs ahead") from error  # It would end the results in silence.
        except BaseException:
            self.close()
            raise
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Stop; returns when nothing more is drawn."""
        self._stopped.set()
        self._room.lift()
        self._drawer.join()
        with contextlib.suppress(queue.Empty):
            while True:
                left = self._ready.get_nowait()
                if isinstance(left, tuple):
                    left[0].cancel()
        if isinstance(self._items, Generator):
            self._items.close()  # It may read ahead too, which nobody would stop while an error holds on to it.


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    pool: Executor,
    limit: int,
    size_of: Callable[[T], int] = lambda _: 0,
) -> Iterator[R]:
    """The results of a `MapAhead` of the same arguments, which begins when the first is asked for."""
    with contextlib.closing(MapAhead(function, items, pool, limit, size_of)) as results:
        yield from results


def batch_by_shape(
    items: Iterable[T], shape_of: Callable[[T], tuple[int, ...]], batch_size: int, pixel_budget: int
) -> Iterator[list[T]]:
    """Group items into batches of one shape.

    A batch is full at `batch_size` items or at `pixel_budget` pixels, whichever is first, and holds at least one.
    Waiting items of all shapes together hold no more than four budgets: past that the fullest group goes out as it
    is. The same items in the same order always make the same batches.

    Args:
        items: what to group.
        shape_of: (height, width, ...) of an item, in pixels.
        batch_size: items in a batch at most.
        pixel_budget: height x width x items in a batch at most.
    """
    waiting: dict[tuple[int, ...], list[T]] = {}
    waiting_pixels = 0

    def pixels(shape: tuple[int, ...]) -> int:
        return shape[0] * shape[1]

    for item in items:
        shape = shape_of(item)
        group = waiting.setdefault(shape, [])
        group.append(item)
        waiting_pixels += pixels(shape)
        full = len(group) >= batch_size or (len(group) + 1) * pixels(shape) > pixel_budget
        while full or waiting_pixels > 4 * pixel_budget:
            out = shape if full else max(waiting, key=lambda one: len(waiting[one]) * pixels(one))
            waiting_pixels -= len(waiting[out]) * pixels(out)
            yield waiting.pop(out)
            full = False
    yield from waiting.values()
