"""Virtual environments that hold nothing but what a stranger would install, and newer releases that tempt pip."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.newer_wheels import write_wheel

ROOT = Path(__file__).parents[2]
PACKAGES = [folder for name in ("imagebeam", "pipelines", "transforms") if (folder := ROOT / name).is_dir()]
"""What the wheel installs."""

_STACK = "-tfio" if importlib.util.find_spec("tensorflow_io") else ""
LOCK, DEV_LOCK = f"requirements{_STACK}.lock", f"requirements{_STACK}-dev.lock"
"""The locks of the stack that the tests run on: for production, and with what development takes."""

INSTALL = ("install", "--quiet", "--disable-pip-version-check", "--no-deps")
"""How Makefile and Dockerfile call pip; `test_locks.py` compares."""


def lock_entries(name: str) -> list[tuple[Requirement, list[str]]]:
    """The pins of a lock file, each with its hashes."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(Requirement(line.split(" --hash=")[0]), re.findall(r"--hash=(\S+)", line)) for line in lines]


def pins(name: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Package -> version that a lock installs in an environment (default: this one)."""
    markers = {name: str(value) for name, value in {**default_environment(), **(environment or {})}.items()}
    return {
        canonicalize_name(entry.name): str(entry.specifier).removeprefix("==")
        for entry, _ in lock_entries(name)
        if entry.marker is None or entry.marker.evaluate(markers)
    }


def write_stand_ins(folder: Path, lock: str) -> Path:
    """Stand-ins for a lock's packages, with the requirements of the installed ones, and the lock with their hashes.

    Returns:
        The rewritten lock, in `folder` beside the wheels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, version in pins(lock).items():
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            requires = []
        wheel = write_wheel(folder, name, version, requires)
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    rewritten = folder / lock
    rewritten.write_text("\n".join(lines) + "\n")
    return rewritten


def stranger(home: Path, *find_links: Path) -> dict[str, str]:
    """The variables of someone who has just come to this machine: an empty home, no cache, pip's settings as they are.

    Args:
        home: created empty.
        find_links: folders of wheels offered beside the registry.
    """
    home.mkdir(parents=True, exist_ok=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PIP_", "SSL_", "REQUESTS_", "LC_")) or name.lower().endswith("_proxy") or name == "LANG"
    }
    settings = [path for path in (Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf") if path.exists()]
    if settings:
        kept.setdefault("PIP_CONFIG_FILE", str(settings[0]))
    if find_links:
        offered = [*kept.get("PIP_FIND_LINKS", "").split(), *map(str, find_links)]
        kept["PIP_FIND_LINKS"] = " ".join(offered)
    return kept | {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "PIP_NO_CACHE_DIR": "1"}


class Environment:
    """A virtual environment, and a home of its own to run things from, outside the checkout.

    Attributes:
        folder: the environment.
        home: the working folder of what is run; empty at first.
        variables: the environment variables of what is run.
    """

    def __init__(self, folder: Path, *find_links: Path) -> None:
        """Make an empty one, of the Python that runs the tests, with the pip that this Python brings."""
        self.folder = folder
        self.home = folder.with_name(folder.name + "-home")
        self.variables = stranger(self.home, *find_links)
        if not folder.exists():
            self._run([sys.executable, "-m", "venv", str(folder)])

    def copy(self, folder: Path) -> Environment:
        """The same packages again, as hard links: what is uninstalled there stays here."""
        shutil.copytree(self.folder, folder, symlinks=True, copy_function=_link)
        return Environment(folder)

    def pip(self, *arguments: str | Path) -> str:
        """Run pip; returns its output."""
        return self.python("-m", "pip", *arguments)

    def install_lock(self, lock: Path) -> None:
        """Install a lock as Makefile and Dockerfile do, and check that it is whole."""
        self.install_build_lock()
        self.pip(*INSTALL, "--no-build-isolation", "--require-hashes", "-r", lock)
        self.pip("check")

    def install_build_lock(self) -> None:
        """Install what packages without a wheel are built with."""
        self.pip(*INSTALL, "--require-hashes", "-r", ROOT / "requirements-build.lock")

    def python(self, *arguments: str | Path) -> str:
        """Run the environment's Python; returns its output."""
        return self._run([self.folder / "bin" / "python", *arguments])

    def imagebeam(self, *arguments: str | Path, code: int | None = 0, **variables: str) -> str:
        """Run the command by the module it starts, as the console script's path is that of the first environment.

        Args:
            arguments: its arguments.
            code: the exit code it must give; None for any.
            variables: more environment variables.
        """
        command = [self.folder / "bin" / "python", "-m", "pipelines", *arguments]
        return self._run(command, code, variables)

    def command(self, name: str, *arguments: str | Path, code: int = 0, seconds: float | None = None) -> str:
        """Run a console script; returns its output.

        Args:
            name: of the script.
            arguments: its arguments.
            code: the exit code it must give.
            seconds: it is killed after so many, and `code` is then -9; Airflow does not end by SIGTERM.
        """
        limit = [] if seconds is None else ["timeout", "--signal=KILL", str(seconds)]
        return self._run([*limit, self.folder / "bin" / name, *arguments], code)

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        (folder,) = (self.folder / "lib").glob("python3*/site-packages")
        return folder

    def installed(self) -> dict[str, str]:
        """Package -> version, without what every environment is made with."""
        lines = self.pip("list", "--format=freeze", "--disable-pip-version-check").splitlines()
        found = dict(line.split("==") for line in lines if "==" in line)
        return {canonicalize_name(name): version for name, version in found.items()}

    def _run(
        self, command: Sequence[str | Path], code: int | None = 0, variables: Mapping[str, str] | None = None
    ) -> str:
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.home,
            env={**self.variables, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert code is None or done.returncode == code, (
            f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}"
        )
        return done.stdout


def build(folder: Path) -> Path:
    """Build the project's sdist, and a wheel from it, from a copy of the tracked and new files alone.

    Returns:
        `folder`, with both.
    """
    copy = folder / "checkout"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(copy)]
    done = subprocess.run(
        command, env=stranger(folder / "home"), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _link(source: str, target: str) -> None:
    os.link(source, target)


def closure(requirements: Iterable[str], requires: Mapping[str, Sequence[str]]) -> set[str]:
    """The packages that requirements bring, all of whose dependencies are known.

    Args:
        requirements: such as "imagebeam[train]".
        requires: canonical package name -> its Requires-Dist lines.
    """
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in found:
                continue
            found.add((name, extra))
            lines = map(Requirement, requires.get(name, ()))
            waiting += [line for line in lines if line.marker is None or line.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}
