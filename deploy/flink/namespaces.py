"""Hosts of our own on one machine: Linux network namespaces on a bridge, all inside one that is private to us.

Nothing reaches the machine's own network, and nothing is left behind: when the first process dies, however it dies,
the kernel ends every process inside and removes the namespaces with them. Root is not needed where the kernel lets
users make namespaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

from transforms.core.errors import ImagebeamError

GATEWAY = "198.18.0.1"
"""Where this process is reached; 198.18.0.0/15 is set aside for tests of networks (RFC 2544)."""

_INSIDE = "IMAGEBEAM_FLINK_NAMESPACE"
_BRIDGE = "hosts"


class UnavailableError(ImagebeamError):
    """Something the cluster needs cannot be had on this machine."""


def enter() -> None:
    """Run this program again, as the first process of a private network; returns only there.

    The process outside waits for it, and exits with its exit code.

    Raises:
        UnavailableError: where the machine cannot make one.
    """
    if os.environ.get(_INSIDE):
        _make_bridge()
        return
    for program, package in (("unshare", "util-linux"), ("setpriv", "util-linux"), ("ip", "iproute2")):
        if shutil.which(program) is None:
            raise UnavailableError(f"There is no `{program}` on the PATH. Install {package}; this needs Linux.")
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    probe = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        raise UnavailableError(f"Network namespaces cannot be made here ({probe.stderr.strip()}). Run as root.")
    # `unshare` takes what is inside down with it, but swallows SIGTERM: whatever ends this process, SIGKILL ends it.
    command = ["setpriv", "--pdeathsig", "KILL", *unshare, sys.executable, *sys.argv]
    with subprocess.Popen(command, env={**os.environ, _INSIDE: "1"}) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.kill())
        sys.exit(process.wait() % 256)


def add_host(name: str, number: int) -> str:
    """Make a host; processes run on it with `on_host`.

    Args:
        name: at most 15 characters.
        number: from 2 to 254, unique.

    Returns:
        Its IPv4 address.
    """
    address = f"198.18.0.{number}"
    _ip("netns", "add", name)
    _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", name, "master", _BRIDGE, "up")
    _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    _ip("-n", name, "link", "set", "lo", "up")
    return address


def on_host(name: str, command: Sequence[str]) -> list[str]:
    """The command that runs `command` on a host, in the same process."""
    return ["ip", "netns", "exec", name, *command]


def _make_bridge() -> None:
    # `ip netns` keeps its handles in /run/netns; ours are to be seen by nobody else.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    _ip("link", "set", "lo", "up")
    _ip("link", "add", _BRIDGE, "type", "bridge")
    _ip("address", "add", f"{GATEWAY}/24", "dev", _BRIDGE)
    _ip("link", "set", _BRIDGE, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
