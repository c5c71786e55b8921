"""What `benchmarks.gpu_check` makes of the times of parts, and that it finds what it left running."""

import os
import subprocess
import sys

import pytest

from benchmarks.gpu_check import MARK, left_processes, steady_rate


def test_the_rate_is_of_the_time_in_which_every_process_works() -> None:
    """Three processes begin at 10, 40 and 40 s and write a part of 100 rows every 6 s; one of them ends early."""
    times = [*range(16, 130, 6), *range(46, 130, 6), *range(46, 112, 6)]
    parts = [(float(seconds), 100) for seconds in times]
    assert len([seconds for seconds in times if seconds < 46]) < len(times) // 3
    assert steady_rate(reversed(parts), 3) == pytest.approx(3 * 100 / 6, rel=0.08)


@pytest.mark.parametrize(("count", "workers"), [(0, 1), (1, 1), (2, 1), (4, 2)])
def test_too_few_parts_tell_no_rate(count: int, workers: int) -> None:
    with pytest.raises(RuntimeError, match=f"{count} parts by {workers} processes"):
        steady_rate([(float(number), 100) for number in range(count)], workers)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_process_left_running_is_found_wherever_it_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, str(os.getpid()))
    assert left_processes() == []
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as left:
        assert left.stdout is not None
        left.stdout.readline()  # Its environment is not to be seen before it runs.
        assert [found.split(":")[0] for found in left_processes()] == [str(left.pid)]
        left.communicate(b"\n")
    assert left_processes() == []
