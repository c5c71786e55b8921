"""One launcher at a time on one output."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from transforms.core.errors import ImagebeamError, JobError
from transforms.runs import lease


def leave(folder, **changes):
    """A lease file as another launcher writes it."""
    path = folder / "lease-0123456789abcdef.json"
    path.write_text(json.dumps({**dataclasses.asdict(lease._me()), **changes}))
    return path


def test_second_launcher_is_refused_and_told_who_holds_the_lease(tmp_path):
    with lease.hold(str(tmp_path)):
        started = time.monotonic()
        with pytest.raises(ImagebeamError, match=rf"process {os.getpid()} of .* since 2"), lease.hold(str(tmp_path)):
            pass
        assert time.monotonic() - started < 2
    assert not list(tmp_path.iterdir())
    with lease.hold(str(tmp_path)):
        pass


def test_lease_of_a_killed_local_launcher_is_void(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = leave(tmp_path, pid=gone.pid)
    with lease.hold(str(tmp_path)):
        assert not left.exists()


def test_reused_process_id_does_not_hold_the_lease(tmp_path):
    leave(tmp_path, process_started="1")
    with lease.hold(str(tmp_path)):
        pass


@pytest.mark.parametrize(("age", "is_held"), [(0, True), (90, True), (lease.TIMEOUT_SECONDS + 5, False)])
def test_lease_of_a_remote_launcher_expires(tmp_path, age, is_held):
    path = leave(tmp_path, machine="another", host="worker-7")
    moment = time.time() - age
    os.utime(path, (moment, moment))
    if is_held:
        with pytest.raises(ImagebeamError, match="worker-7"), lease.hold(str(tmp_path)):
            pass
        assert [one.name for one in tmp_path.iterdir()] == [path.name]
    else:
        with lease.hold(str(tmp_path)):
            assert not path.exists()


def test_a_lease_that_may_not_be_deleted_does_not_keep_its_own_process_out(tmp_path, monkeypatch):
    def refuse(uri):
        raise PermissionError(uri)

    monkeypatch.setattr("transforms.storage.delete", refuse)
    with lease.hold(str(tmp_path)):
        pass
    assert len(list(tmp_path.iterdir())) == 1
    with lease.hold(str(tmp_path)), pytest.raises(ImagebeamError, match="since 2"), lease.hold(str(tmp_path)):
        pass
    monkeypatch.undo()  # The disk works again.
    with lease.hold(str(tmp_path)):
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


def test_simultaneous_launchers_never_both_work(tmp_path):
    inside, most, won = [], [], []
    barrier = threading.Barrier(6)

    def launch():
        barrier.wait()
        try:
            with lease.hold(str(tmp_path)):
                inside.append(1)
                most.append(len(inside))
                won.append(1)
                time.sleep(0.2)
                inside.pop()
        except ImagebeamError:
            pass

    threads = [threading.Thread(target=launch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won
    assert max(most) == 1


def test_lost_lease_is_noticed(tmp_path):
    with lease.hold(str(tmp_path)):
        lease.check(str(tmp_path))
        next(tmp_path.glob("lease-*")).unlink()
        with pytest.raises(JobError, match="was lost"):
            lease.check(str(tmp_path))
    lease.check(str(tmp_path))
