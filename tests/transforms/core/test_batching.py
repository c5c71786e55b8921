import itertools
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from transforms.core.batching import batch_by_shape, map_ahead


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_map_ahead_keeps_the_order(pool):
    def slow_start(number):
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number * number

    assert list(map_ahead(slow_start, range(50), pool, limit=7)) == [number * number for number in range(50)]


def test_map_ahead_holds_no_more_than_its_limit(pool):
    drawn = []

    def items():
        for number in range(100):
            drawn.append(number)
            yield number

    results = map_ahead(lambda number: number, items(), pool, limit=5)
    for consumed in range(1, 30):
        next(results)
        time.sleep(0.002)
        # `limit` between drawing and consuming, one in the reader's hand waiting for a place, one being consumed.
        assert len(drawn) <= consumed + 5 + 1
    assert isinstance(results, Generator)
    results.close()


def test_map_ahead_holds_no_more_bytes_than_its_budget(pool, monkeypatch):
    monkeypatch.setattr("transforms.core.batching.BYTES_AHEAD", 100)
    drawn = []

    def items():
        for size in (40, 40, 40, 500, 10):
            drawn.append(size)
            yield size

    results = map_ahead(lambda size: size, items(), pool, 10, lambda size: size)
    assert next(results) == 40
    time.sleep(0.1)
    assert drawn == [40, 40, 40, 500]  # The last one is drawn, and waits until it is alone.
    assert list(results) == [40, 40, 500, 10]


def test_map_ahead_raises_the_readers_error_after_earlier_results(pool):
    def items():
        yield 1
        yield 2
        raise OSError("disk gone")

    results = map_ahead(lambda number: number, items(), pool, limit=2)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(results)


def test_map_ahead_raises_the_functions_error(pool):
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda number: 1 // number, [1, 0, 1], pool, limit=2))


def test_map_ahead_does_not_take_a_functions_stop_iteration_for_the_end(pool):
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(map_ahead(lambda number: next(iter([])) if number == 2 else number, range(4), pool, limit=2))


def test_map_ahead_stops_reading_when_the_consumer_leaves(pool):
    before = threading.active_count()

    def endless():
        number = 0
        while True:
            yield number
            number += 1

    results = map_ahead(lambda number: number, endless(), pool, limit=3)
    assert next(results) == 0
    assert isinstance(results, Generator)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
    assert threading.active_count() <= before + 4


@pytest.mark.parametrize("end", ["error", "closed"])
def test_map_ahead_leaves_no_work_behind(end):
    """What waited in the pool would run on after whoever wanted it: for minutes, and with what no longer is there."""
    begun, all_drawn, may_end = [], threading.Event(), threading.Event()

    def items():
        yield from range(20)
        all_drawn.set()

    def work(number):
        begun.append(number)
        all_drawn.wait(10)
        if number:
            may_end.wait(10)
        return 1 // number if end == "error" else number

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(work, items(), pool, limit=30)
        assert isinstance(results, Generator)
        if end == "closed":
            assert next(results) == 0
            results.close()
        else:
            with pytest.raises(ZeroDivisionError):
                next(results)
        may_end.set()
    assert len(begun) <= 2


def test_batches_hold_one_shape_and_are_full_where_they_can_be():
    shapes = [(10, 10), (20, 10)] * 10
    batches = list(batch_by_shape(enumerate(shapes), lambda item: item[1], batch_size=4, pixel_budget=10_000))
    assert all(len({shape for _, shape in batch}) == 1 for batch in batches)
    assert sorted(len(batch) for batch in batches) == [2, 2, 4, 4, 4, 4]
    assert sorted(index for batch in batches for index, _ in batch) == list(range(20))


def test_pixel_budget_bounds_a_batch_to_at_least_one_image():
    shapes = [(10, 10)] * 5 + [(100, 100)] * 2
    batches = list(batch_by_shape(shapes, lambda shape: shape, batch_size=32, pixel_budget=250))
    assert [len(batch) for batch in batches] == [2, 2, 1, 1, 1]
    assert sum(map(len, batches)) == 7


def test_waiting_images_of_many_shapes_are_bounded():
    waiting = 0
    peak = 0

    def items():
        nonlocal waiting, peak
        for side in range(10, 200):
            waiting += side * 10
            peak = max(peak, waiting)
            yield (side, 10)

    for batch in batch_by_shape(items(), lambda shape: shape, batch_size=32, pixel_budget=5_000):
        waiting -= sum(height * width for height, width in batch)
    assert peak <= 4 * 5_000 + 2_000
    assert waiting == 0


def test_nested_map_ahead_ends_with_the_outer_one():
    """Although the error that ended it, and here a name, still hold on to it."""
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as other:
        inner = (item for item in map_ahead(abs, itertools.count(), pool, 2))
        with pytest.raises(ZeroDivisionError) as kept:
            list(map_ahead(lambda number: 1 // (number - 3), inner, other, 2))
        assert kept.value.__traceback__ is not None
        assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
