"""The short form of `make hostile`: a few hundred seeded attacks, and the test of the test."""

import subprocess

import pytest

from tests.support.hostile import children, targets
from tests.support.hostile.__main__ import BEGIN, COUNTS, END, PAGE, insert

SHORT = {"images": 300, **dict.fromkeys((name for name in COUNTS if name != "images"), 40)}


def test_every_kind_is_attacked():
    assert COUNTS.keys() == targets.TARGETS.keys()


@pytest.mark.parametrize("kind", list(COUNTS))
def test_damaged_input_crashes_nothing_and_loses_no_other_record(kind):
    report = children.attack_all(kind, SHORT[kind])
    assert report.problems == []
    assert report.tried == SHORT[kind]
    assert len(report.outcomes) > 1
    assert report.megabytes < 500


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(COUNTS))
def test_other_seeds(kind):
    assert children.attack_all(kind, COUNTS[kind] // 10, first=1_000_000).problems == []


CRASHING = """
import os
from tests.support.hostile import children, targets

def attack(kind, seed):
    if seed == 1:
        os.abort()
    assert seed != 3
    return "taken"

targets.attack = attack
children.main()
"""


def test_crash_and_failed_check_are_counted(monkeypatch):
    """The test of the test."""
    original = subprocess.run

    def run(command, **options):
        return original([command[0], "-c", CRASHING, *command[3:]], **options)

    monkeypatch.setattr(subprocess, "run", run)
    report = children.attack_all("images", 5)
    assert report.tried == 5
    assert [problem.partition(":")[0] for problem in report.problems] == ["seed 1", "seed 3"]
    assert "the process ended with -6" in report.problems[0]
    assert report.outcomes == {"taken": 3}


def test_table_is_inserted_between_its_markers():
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert insert(insert(page, "x"), "y") == insert(page, "y")
