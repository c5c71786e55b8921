"""What every test gets: no network beyond this machine, unless it is marked as fetching the real weights."""

import ipaddress
import logging
import socket

import pytest

from tests.support import extracting
from transforms.storage import retry


def _is_loopback(address):
    if not isinstance(address, tuple):  # a Unix socket's path
        return True
    host = address[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(autouse=True)
def _no_network(request, monkeypatch):
    if request.node.get_closest_marker("real_weights"):
        return
    connect = socket.socket.connect

    def refuse(self, address):
        if not _is_loopback(address):
            raise ConnectionRefusedError(f"tests use no network; this one went to {address!r}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Faults of the machine are tried again at once, and each test counts its own."""
    monkeypatch.setattr(retry, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(retry, "PATIENCE", retry.Patience())


@pytest.fixture(autouse=True)
def _root_logger_takes_warnings():
    """Whatever level a library has left the root logger at: its level is process-wide, so one test's is all others'."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.WARNING)
    yield
    root.setLevel(before)


@pytest.fixture
def source(tmp_path):
    """A folder of `extracting.COUNT` images."""
    return extracting.small_images(tmp_path / "in", extracting.COUNT)


@pytest.fixture
def output(tmp_path):
    """Where a run's output goes."""
    return tmp_path / "out"
