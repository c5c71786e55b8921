"""Attacks in child processes: one that crashes, hangs or takes too much is counted, and the rest goes on."""

from __future__ import annotations

import collections
import contextlib
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transforms.images.isolated import decoder_pool

SECONDS_EACH = 20
"""Of a processor, for one attack at most."""

MEGABYTES = 2_048
"""That a child may take beyond what it has before the first attack."""


@dataclass
class Report:
    """What became of the attacks on one kind of file.

    Attributes:
        kind: of file; a key of `targets.TARGETS`.
        outcomes: outcome -> attacks.
        problems: what did not hold, with the seed.
        megabytes: the most that a process took beyond what it had before.
        seconds: of a processor, for the slowest attack.
    """

    kind: str
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)
    megabytes: int = 0
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        return sum(self.outcomes.values()) + len(self.problems)


def attack_all(kind: str, count: int, first: int = 0) -> Report:
    """Attack with the seeds from `first` on; a child that dies is followed by another one."""
    report = Report(kind)
    seed, end = first, first + count
    while seed < end:
        command = [sys.executable, "-m", "tests.support.hostile.children", kind, str(seed), str(end)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            outcome = json.loads(line)
            seed = outcome["seed"] + 1
            report.seconds = max(report.seconds, outcome["seconds"])
            report.megabytes = max(report.megabytes, outcome["megabytes"])
            if outcome["problem"]:
                report.problems.append(f"seed {seed - 1}: {outcome['problem']}")
            else:
                report.outcomes[outcome["outcome"]] += 1
        if done.returncode:
            error = done.stderr.strip().splitlines()[-1:] or [""]
            report.problems.append(f"seed {seed}: the process ended with {done.returncode} {error[0]}")
            seed += 1
    return report


def _megabytes() -> int:
    """The most that this process had, or that a decoder process took beyond what its parent has."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return max([own, *(own + taken for taken in _taken_by_decoders())])


def _taken_by_decoders() -> Iterator[int]:
    for pool in decoder_pool._POOLS.values():
        for process in pool._all:
            parent = process._process.pid
            with contextlib.suppress(OSError):
                for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
                    yield (_status(child, "VmHWM") - _status(parent, "VmRSS")) >> 10


def _status(pid: int | str, name: str) -> int:
    """Kilobytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _seconds() -> float:
    """Of a processor, here and in decoder processes."""
    return time.process_time() + decoder_pool.thread_time() - time.thread_time()


def main() -> None:
    """A child: one line of JSON for each attack."""
    from tests.support.hostile.targets import attack
    from transforms.storage import retry

    retry.WAITS = ()  # What a machine refuses is tried again for seconds, which says nothing of the files.

    kind, first, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    before = _megabytes()
    for seed in range(first, end):
        # Not handled, these end the process, even within a library that hangs; a busy machine's pauses are no hang.
        signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
        signal.alarm(10 * SECONDS_EACH)
        started = _seconds()
        outcome, problem = "", None
        try:
            outcome = attack(kind, seed)
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:300]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        megabytes = _megabytes() - before
        if megabytes > MEGABYTES:
            problem = problem or f"{megabytes:,} MB"
        about = {"seed": seed, "outcome": outcome, "problem": problem, "megabytes": megabytes}
        line = json.dumps({**about, "seconds": round(_seconds() - started, 3)})
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
