"""The Java side of the Flink demonstration: a Flink distribution, and the jar that holds Beam's Flink runner.

Both come from package registries and are kept in the cache folder. Where the jar that Beam publishes for the
installed release cannot be had, `runner/` is built instead: Beam's own modules of an earlier release.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from namespaces import UnavailableError

from pipelines.common.cache import cache_folder
from pipelines.common.console import say

HERE = Path(__file__).parent

PUBLISHED_FLINK = "1.20.5"
"""Goes with the job server jar of the installed Beam release."""

ASSEMBLED_FLINK = "1.19.3"
"""Goes with `runner/pom.xml`."""

_POM = HERE / "runner" / "pom.xml"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
_FLINK_LIBRARIES = ("flink-dist-", "log4j-")
"""Of the distribution's jars, those a cluster needs that runs no SQL."""


@dataclass(frozen=True)
class Installation:
    """What a cluster is started from.

    Attributes:
        flink_version: such as "1.20.5".
        libraries: folder with Flink's jars.
        runner_jar: what is submitted: Beam's Flink runner, to which the launcher adds the pipeline.
    """

    flink_version: str
    libraries: Path
    runner_jar: Path

    def __str__(self) -> str:
        return f"Flink {self.flink_version}, {self.runner_jar.name}"


def install() -> Installation:
    """Fetch what is not in the cache yet.

    Raises:
        UnavailableError: naming what could not be had.
    """
    for program, package in (("java", "a Java 11 or 17 runtime"), ("mvn", "Maven")):
        if shutil.which(program) is None:
            raise UnavailableError(f"There is no `{program}` on the PATH. Install {package}.")
    _cache().mkdir(parents=True, exist_ok=True)
    published, assembled = _published_jar(), _assembled_jar()
    if not published.exists() and not assembled.exists() and not _fetch(published):
        _build(assembled)
    if published.exists():
        return Installation(PUBLISHED_FLINK, _flink(PUBLISHED_FLINK), published)
    return Installation(ASSEMBLED_FLINK, _flink(ASSEMBLED_FLINK), assembled)


def _cache() -> Path:
    return cache_folder() / "flink"


def _published_jar() -> Path:
    """Where Beam's job server jar of the installed release is kept, under the name Maven gives it."""
    minor = PUBLISHED_FLINK.rpartition(".")[0]
    return _cache() / f"beam-runners-flink-{minor}-job-server-{importlib.metadata.version('apache-beam')}.jar"


def _fetch(jar: Path) -> bool:
    """Fetch a Beam jar; False where Maven does not find it."""
    artifact, _, version = jar.stem.rpartition("-")
    coordinates = f"org.apache.beam:{artifact}:{version}"
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        maven = _run(["mvn", "-B", "-q", _COPY, f"-Dartifact={coordinates}", f"-DoutputDirectory={folder}"])
        if maven.returncode == 0:
            (Path(folder) / jar.name).rename(jar)
            return True
    say(f"Maven does not find {coordinates}: building deploy/flink/runner instead")
    return False


def _assembled_jar() -> Path:
    """Where the jar built from `runner/` is kept, under a name that its sources decide."""
    sources = [_POM, *sorted((HERE / "runner" / "src").rglob("*.java"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return _cache() / f"flink-runner-{digest[:12]}.jar"


def _build(jar: Path) -> None:
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        maven = _run(["mvn", "-B", "-q", "-f", str(_POM), "package", f"-Doutput={folder}"])
        if maven.returncode != 0:
            raise UnavailableError(f"Maven cannot build {_POM}: {_reason(maven.stdout)}")
        (Path(folder) / "flink-runner.jar").rename(jar)


def _flink(version: str) -> Path:
    """Folder with Flink's jars, out of the source distribution of `apache-flink-libraries`."""
    folder = _cache() / f"flink-{version}"
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=_cache()) as download:
        requirement = f"apache-flink-libraries=={version}"
        say(f"Fetching {requirement} (230 MB)")
        pip = _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", download, requirement])
        archives = list(Path(download).glob("*.tar.gz"))
        if pip.returncode != 0 or not archives:
            raise UnavailableError(f"pip cannot fetch {requirement}: {_reason(pip.stderr)}")
        libraries = Path(download) / "lib"
        libraries.mkdir()
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                path = Path(member.name)
                if path.parent.name == "lib" and path.name.startswith(_FLINK_LIBRARIES):
                    member.name = path.name
                    archive.extract(member, libraries, filter="data")
        return libraries.rename(folder)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"`{command[0]}` did not answer within {error.timeout:.0f} s.") from error


def _reason(output: str) -> str:
    """The line that says why: the first marked as an error, or else the last."""
    lines = [line for line in output.splitlines() if line.strip()] or ["it gave no reason"]
    return next((line for line in lines if "ERROR" in line), lines[-1])
