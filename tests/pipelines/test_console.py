"""What a person sees while a job runs: a bar on a terminal, plain lines elsewhere, and no more than was said."""

import os
import pty
import re
import subprocess
import sys
import textwrap
import time

import pytest

from pipelines.common import console
from pipelines.common.console import ProgressBar, progress_line, say
from transforms.core.errors import ImagebeamError
from transforms.core.progress import PROGRESS, Progress

JOB = """
import time
from pipelines.common import console
from transforms.core.progress import PROGRESS

console.PLAIN_INTERVAL = console._TERMINAL_INTERVAL = 0.05
with console.ProgressBar(int):
    PROGRESS.planned_more(1500)
    PROGRESS.failed(7)
    for _ in range(10):
        PROGRESS.embedded(100, 0.1)
        time.sleep(0.1)
console.say("done")
"""
LINE = r"([\d,]+) of 1,500 records, 7 failed, [\d,.]+ images/s, \d:\d\d:\d\d left"


@pytest.fixture(autouse=True)
def _from_zero():
    PROGRESS.reset()
    yield
    PROGRESS.reset()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.02)


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def counts(**values):
    return Progress(**values)


@pytest.mark.parametrize(
    ("progress", "rate", "line"),
    [
        (counts(planned=9), 0.0, "0 of 9 records, 0 failed"),
        (
            counts(planned=12_000, done=2_000, failures=1_500, images=500),
            2.5,
            "2,000 of 12,000 records, 1,500 failed, 2.5 images/s, 1:06:40 left",
        ),
        (counts(planned=5, done=5, images=5), 1234.56, "5 of 5 records, 0 failed, 1,234.6 images/s, 0:00:00 left"),
    ],
)
def test_progress_line(progress, rate, line):
    assert progress_line(progress, rate) == line


def test_rate_ignores_the_start_and_old_batches(monkeypatch):
    clock, meter = Clock(monkeypatch), console._Meter()
    assert meter.rate(counts()) == 0.0
    clock.now += 60  # the model loads
    assert meter.rate(counts(images=32)) == 0.0
    clock.now += 10
    assert meter.rate(counts(images=132)) == pytest.approx(10.0)
    for seconds in range(1, 101):
        clock.now += 1
        rate = meter.rate(counts(images=132 + 2 * seconds))
    assert rate == pytest.approx(2.0)


@pytest.mark.parametrize("text", ["[red]gs://b/[x]:cat:/*[/]", "5 % of 'a'  b", "x" * 300, "/tmp/猫"])
def test_say_prints_text_unchanged(text, capsys):
    say(text)
    captured = capsys.readouterr()
    assert captured.err == f"{text}\n"
    assert captured.out == ""


def test_progress_is_plain_lines_without_a_terminal(quick, capsys):
    with ProgressBar(int):
        PROGRESS.planned_more(10)
        for _ in range(4):
            PROGRESS.embedded(2, 0.1)
            time.sleep(0.05)
        PROGRESS.failed(1)
        time.sleep(0.1)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[-1].startswith("9 of 10 records, 1 failed, ")
    assert all(
        re.fullmatch(r"\d of 10 records, \d failed(, [\d,.]+ images/s, \d:\d\d:\d\d left)?", one) for one in lines
    )
    assert captured.out == ""


def test_remote_progress_counts_committed_units(quick, capsys, monkeypatch):
    committed = iter([1_000, OSError("no network"), ImagebeamError("gone"), 1_200])

    def count():
        found = next(committed, 1_300)
        if isinstance(found, Exception):
            raise found
        return found

    with ProgressBar(count):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""  # not every few seconds
    monkeypatch.setattr(console, "ELSEWHERE_INTERVAL", 0.0)
    with ProgressBar(count):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [f"{units} units are committed" for units in ("1,000", "1,200", "1,300")]


def test_error_propagates_and_ends_the_bar():
    with pytest.raises(RuntimeError, match="mine"), ProgressBar(int) as bar:
        raise RuntimeError("mine")
    assert not bar._thread.is_alive()


def on_terminal(script):
    """What a script writes on a terminal of 80 columns."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=child, env=environment)
    os.close(child)
    written = b""
    try:
        while piece := os.read(parent, 65536):
            written += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(parent)
    assert process.wait(60) == 0
    return written.decode()


def test_progress_is_a_bar_on_a_terminal():
    written = on_terminal(JOB)
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).replace("\r", "\n").splitlines()
    done = [int(match[1].replace(",", "")) for frame in frames if (match := re.search(LINE, frame))]
    assert len(done) > 3
    assert done == sorted(done)
    assert max(map(len, frames)) <= 80
    assert any("━" in frame for frame in frames)
    assert written.rindex("records") < written.rindex("\x1b[2K") < written.index("done")  # the bar goes, the rest stays
    assert [frame for frame in frames if frame][-1] == "done"


def test_no_escape_codes_in_a_redirected_file():
    process = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True, check=True)
    assert re.search(LINE, process.stderr)
    assert "\x1b" not in process.stderr
    assert process.stdout == ""
    assert process.stderr.splitlines()[-1] == "done"
