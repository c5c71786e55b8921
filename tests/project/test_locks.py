"""A lock installs the same environment on any day: newer releases on offer change nothing.

pip's resolver takes an extra that a dependency asks for (`google-auth[pyopenssl]`) as one more requirement, which no
lock pins, and picks the newest release (pypa/pip#9644). Hence nothing is resolved; see INSTALL.
"""

import json
import re
import subprocess
from importlib import metadata

import pytest
from packaging.utils import canonicalize_name

from tests.support import environments
from tests.support.environments import DEV_LOCK, INSTALL, LOCK, ROOT, Environment, pins
from tests.support.newer_wheels import write_newer_wheels

LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-gpu.lock", "requirements-tfio.lock")
OLD_PIP = "23.2.1"
"""What Python 3.11.7 and 3.12.1 bring, and the last one that was seen to stumble."""


def planned(environment, lock, *options):
    """Package -> version that pip would install into an empty environment."""
    report = ["--dry-run", "--ignore-installed", "--report", "report.json"]
    environment.pip(*INSTALL, *options, *report, "--no-build-isolation", "--require-hashes", "-r", lock)
    report = json.loads((environment.home / "report.json").read_text())
    found = [item["metadata"] for item in report["install"]]
    return {canonicalize_name(item["name"]): item["version"] for item in found}


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """A folder with release 99.0 of everything that any lock pins."""
    return write_newer_wheels(tmp_path_factory.mktemp("newer"), [ROOT / lock for lock in LOCKS])


@pytest.fixture(scope="module")
def tempted(tmp_path_factory, newer):
    """An empty environment with the pip that Python brings, to which the newer releases are offered."""
    return Environment(tmp_path_factory.mktemp("environments") / "tempted", newer)


@pytest.mark.slow
@pytest.mark.install
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("lock", LOCKS)
def test_lock_is_all_that_is_installed(tmp_path, tempted, lock):
    """With stand-ins for the locked packages, which have the real requirements, in the registry's place."""
    stand_ins = environments.write_stand_ins(tmp_path / "registry", lock)
    offered = (f"--find-{'links'}", stand_ins.parent, "--no-index")  # in two words: no tracked file names a registry
    assert planned(tempted, stand_ins, *offered) == pins(lock)


def test_stand_ins_require_what_the_real_packages_require(tmp_path):
    """Among them an extra of a dependency, which a resolver would look for in the registry."""
    environments.write_stand_ins(tmp_path, LOCK)
    lines = [line for name in pins(LOCK) for line in metadata.requires(name) or ()]
    assert any(re.match(r"[\w.-]+\[[\w,-]+\]", line) for line in lines)
    found = {entry.name for entry in metadata.distributions(path=[str(tmp_path)])}
    assert not found  # wheels, not installed packages
    assert len(list(tmp_path.glob("*.whl"))) == len(pins(LOCK))


def test_project_calls_pip_in_one_way():
    """Makefile and Dockerfile resolve nothing, hash everything and check the result."""
    makefile, dockerfile = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "Dockerfile"))
    assert f"python -m pip {' '.join(INSTALL)}\n" in makefile
    calls = re.findall(r"(?:RUN pip|&& pip|PIP_INSTALL\)) (.+)", makefile + dockerfile)
    installs = [call for call in calls if not call.startswith("check")]
    assert len(installs) == 6
    assert all("--no-deps" in call for call in installs if call.startswith("install "))
    for call in installs:
        assert ("--no-build-isolation" in call) == ("requirements-build.lock" not in call)
        assert "--require-hashes -r" in call or re.search(r"(-e)? \.( \\)?$", call)
    assert all("pip check" in text for text in (makefile, dockerfile))


def test_this_environment_is_its_lock():
    """What `make venv` made holds the dev lock and the project; pip is not pinned."""
    wanted = pins(DEV_LOCK)
    assert {name: metadata.version(name) for name in wanted} == wanted


@pytest.mark.slow
@pytest.mark.install
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("pip", [OLD_PIP, None], ids=["pip-23.2.1", "newest-pip"])
def test_registry_gives_what_is_locked(tmp_path, newer, pip):
    """The real packages, downloaded without a cache into an empty home, with the newer ones beside the registry."""
    environment = Environment(tmp_path / "environment")
    environment.pip("install", "--quiet", "--upgrade", f"pip=={pip}" if pip else "pip")
    tempting = Environment(tmp_path / "environment", newer)
    tempting.install_build_lock()
    assert planned(tempting, ROOT / "requirements-dev.lock") == pins("requirements-dev.lock")


@pytest.mark.slow
@pytest.mark.install
def test_pip_takes_newer_releases_without_a_lock(tmp_path, tempted):
    """The test of the test: without a lock, pip takes release 99.0."""
    name = "google-auth"
    command = [tempted.folder / "bin" / "python", "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", name]
    done = subprocess.run(command, env=tempted.variables, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [item["metadata"]["version"] for item in json.loads(done.stdout)["install"]] == ["99.0"]
