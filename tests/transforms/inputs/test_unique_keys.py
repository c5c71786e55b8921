from random import Random

import pytest

from transforms.inputs import unique_keys
from transforms.inputs.unique_keys import SeenKeys


@pytest.mark.parametrize("buffer", [1, 3, 64, 1 << 16])
def test_finds_the_same_repeats_as_a_set(monkeypatch, buffer):
    monkeypatch.setattr(unique_keys, "_BUFFER", buffer)
    random, seen, expected = Random(0), SeenKeys(), set()
    for _ in range(3_000):
        key = f"photo-{random.randrange(2_000)}"
        assert seen.add(key) == (key not in expected)
        expected.add(key)


@pytest.mark.slow
def test_takes_little_memory():
    import tracemalloc

    seen = SeenKeys()
    tracemalloc.start()
    for number in range(400_000):
        assert seen.add(f"gs://bucket/photographs/{number:09}.jpg")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 400_000 * 8 + 8_000_000  # a set of the strings takes 50 MB
