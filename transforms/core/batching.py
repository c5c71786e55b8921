"""Work ahead of the model: an ordered, bounded parallel map, and batches of exactly equal shapes."""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def decode_pool() -> ThreadPoolExecutor:
    """The process's one pool of decode threads, shared by every unit in flight: one thread a core."""
    return ThreadPoolExecutor(available_cores(), thread_name_prefix="decode")


def map_ahead(function: Callable[[T], R], items: Iterable[T], pool: Executor, limit: int) -> Iterator[R]:
    """Like ``map(function, items)``, computed ahead of the consumer.

    `items` is drawn in a thread of its own, so that reading overlaps too, and `function` runs in `pool`. At most
    `limit` items are between being drawn and being consumed: that bounds the memory. Order is kept. An exception
    of `items` or `function` is raised at its place; closing the iterator early stops the drawing.
    """
    ready: queue.Queue[Future[R] | BaseException | None] = queue.Queue()
    slots = threading.Semaphore(limit)
    stopped = threading.Event()

    def draw() -> None:
        end: BaseException | None = None
        try:
            for item in items:
                slots.acquire()
                if stopped.is_set():
                    break
                ready.put(pool.submit(function, item))
        except BaseException as error:
            end = error
        ready.put(end)

    drawer = threading.Thread(target=draw, name="read-ahead", daemon=True)
    drawer.start()
    try:
        while isinstance(future := ready.get(), Future):
            result = future.result()
            slots.release()
            yield result
        if future is not None:
            raise future
    finally:
        stopped.set()
        slots.release()
        drawer.join()


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
