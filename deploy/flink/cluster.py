"""A Flink cluster of separate processes: a job manager, task managers, and a Python worker pool beside each of these.

Each task manager and its pool share a host of their own, as they share a pod on Kubernetes: "localhost:50000" is the
task manager's own pool on every one of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jars import HERE, Installation
from namespaces import GATEWAY, add_host, on_host

from transforms.core.errors import JobError

CONFIGURATION = HERE / "conf"
POOL_PORT = 50000
PARALLELISM = 2

_START_SECONDS = 120.0
_OPENED = (
    *("java.lang", "java.lang.reflect", "java.net", "java.io", "java.nio", "java.text", "java.time"),
    *("java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks", "sun.nio.ch"),
)
"""Packages of java.base that Flink and Beam look into by reflection."""


@dataclass(frozen=True)
class TaskManager:
    """One task manager's host and processes."""

    name: str
    address: str
    process: subprocess.Popen[bytes]
    pool: subprocess.Popen[bytes]


@dataclass(frozen=True)
class Job:
    """What Flink says of a job.

    Attributes:
        state: "RUNNING", "FINISHED", ...
        seconds: since its start, or how long it took.
        failures: the root cause of each restart, newest first, as many as Flink keeps.
        units: host -> records that the stage named in `Cluster.job` read there.
    """

    state: str
    seconds: float
    failures: tuple[str, ...]
    units: Mapping[str, int]


class Cluster:
    """Started by `start`; `namespaces.enter` must have been called."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self._installation = installation
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.task_managers: list[TaskManager] = []

    @property
    def beam_flags(self) -> list[str]:
        """What makes a Beam job run here: flags of Beam's own `FlinkRunner`."""
        return [
            "--runner=FlinkRunner",
            f"--flink_master={GATEWAY}:8081",
            "--flink_submit_uber_jar",
            f"--flink_job_server_jar={self._installation.runner_jar}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{POOL_PORT}",
            f"--parallelism={PARALLELISM}",
        ]

    @classmethod
    @contextlib.contextmanager
    def start(cls, installation: Installation, folder: Path, task_managers: int = 2) -> Iterator[Cluster]:
        """A running cluster, stopped when the block ends. Logs are written to `folder`.

        Raises:
            JobError: if it does not start in two minutes.
        """
        cluster = cls(installation, folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            cluster._start_job_manager()
            for number in range(1, task_managers + 1):
                cluster._start_task_manager(f"tm{number}", number + 10)
            cluster._wait(lambda: cluster._get("overview")["taskmanagers"] == task_managers, "the task managers")
            yield cluster
        finally:
            cluster._stop()

    def kill_task_manager(self, name: str) -> None:
        """SIGKILL to its JVM; its worker pool lives on, as a container beside it would."""
        next(manager for manager in self.task_managers if manager.name == name).process.kill()

    def workers(self) -> list[int]:
        """Process ids of the Python workers that the pools have started."""
        found = []
        for entry in Path("/proc").iterdir():
            # A process may end between listing and reading; a zombie has no command line.
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and b"SdkHarness" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def job(self, stage: str) -> Job:
        """What Flink says of the job submitted last.

        Args:
            stage: part of the name of the one stage whose input is counted for each host.

        Raises:
            JobError: if no stage or more than one is named so.
        """
        newest = max(self._get("jobs/overview")["jobs"], key=lambda job: int(job["start-time"]))
        address = f"jobs/{newest['jid']}"
        history = self._get(f"{address}/exceptions")["exceptionHistory"]["entries"]
        hosts = {manager.address: manager.name for manager in self.task_managers}
        vertices = {vertex["name"]: vertex["id"] for vertex in self._get(address)["vertices"]}
        named = [name for name in vertices if stage in name]
        if len(named) != 1:
            raise JobError(f"{len(named)} stages of the job are named {stage!r}, not one: {', '.join(vertices)}.")
        units: dict[str, int] = {}
        for row in self._get(f"{address}/vertices/{vertices[named[0]]}/taskmanagers")["taskmanagers"]:
            host = hosts.get(row["host"].partition(":")[0], row["host"])
            units[host] = units.get(host, 0) + int(row["metrics"]["read-records"])
        return Job(
            newest["state"], newest["duration"] / 1000, tuple(entry["exceptionName"] for entry in history), units
        )

    def _start_job_manager(self) -> None:
        folder = self._folder / "job-manager"
        self._start(
            folder,
            self._java(
                "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
                "-Xmx1g",
                {
                    "jobmanager.bind-host": "0.0.0.0",
                    "rest.bind-address": "0.0.0.0",
                    "io.tmp.dirs": str(folder),
                    "blob.storage.directory": str(folder / "blobs"),
                },
            ),
        )
        self._wait(lambda: self._get("overview") is not None, "the job manager")

    def _start_task_manager(self, name: str, number: int) -> None:
        address = add_host(name, number)
        folder = self._folder / name
        manager = self._java(
            "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
            "-Xmx512m",
            {
                "taskmanager.host": address,
                "taskmanager.bind-host": address,
                "taskmanager.resource-id": name,
                "io.tmp.dirs": str(folder),
            },
        )
        pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={POOL_PORT}"]
        # The pool starts its workers as `python`: let that be this interpreter's.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.task_managers.append(
            TaskManager(
                name,
                address,
                self._start(folder, on_host(name, manager)),
                self._start(self._folder / f"{name}-pool", on_host(name, pool), {**os.environ, "PATH": path}),
            )
        )

    def _java(self, main: str, heap: str, settings: Mapping[str, str]) -> list[str]:
        settings = {"jobmanager.rpc.address": GATEWAY, "rest.address": GATEWAY, **settings}
        return [
            "java",
            heap,
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
            f"-Dlog4j.configurationFile={CONFIGURATION / 'log4j.properties'}",
            "-cp",
            f"{self._installation.libraries}/*",
            main,
            "--configDir",
            str(CONFIGURATION),
            *(f"-D{name}={value}" for name, value in settings.items()),
        ]

    def _start(
        self, folder: Path, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{folder.name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        self._processes.append(process)
        return process

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if ready():
                    return
            if any(process.poll() is not None for process in self._processes):
                break
            time.sleep(0.5)
        raise JobError(f"{what} did not start. The logs are in {self._folder}.")

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{GATEWAY}:8081/v1/{path}", timeout=10) as response:
            return json.load(response)

    def _stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
