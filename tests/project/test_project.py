"""The project's own files held together: locks, image, Makefile, documents."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = {"runtime": "requirements.lock", "dev": "requirements-dev.lock", "gpu": "requirements-gpu.lock"}
BACKEND_LOCKS = {name: f"requirements-{name}.lock" for name in ("jax", "torch")}
"""Of what Keras computes with in TensorFlow's place."""
TFIO_LOCKS = {"requirements-tfio.lock": ["all", "tfio"], "requirements-tfio-dev.lock": ["all", "dev", "tfio"]}
PLATFORMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def metadata():
    """What setup.py hands to setuptools."""
    captured = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: captured.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    return captured


def lock_entries(name):
    """The pins of a lock file, as (requirement, hashes)."""
    text = read(name).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(Requirement(line.split(" --hash=")[0]), re.findall(r"--hash=(\S+)", line)) for line in lines]


def pins(name, python="3.11", platform=PLATFORMS[0]):
    """Package -> version, as installed on one platform."""
    environment = {"python_version": python, "python_full_version": f"{python}.7", **platform}
    return {
        canonicalize_name(entry.name): str(entry.specifier).removeprefix("==")
        for entry, _ in lock_entries(name)
        if entry.marker is None or entry.marker.evaluate(environment)
    }


class TestLocks:
    @pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: "-".join(list(platform.values())[1:]))
    @pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
    @pytest.mark.parametrize(("lock", "extras"), [("runtime", ["all"]), ("dev", ["all", "dev"])])
    def test_hold_what_setup_asks_for(self, metadata, lock, extras, python, platform):
        locked = pins(LOCKS[lock], python, platform)
        self.assert_satisfied(metadata, extras, locked)

    def test_hold_what_setup_asks_for_on_a_gpu(self, metadata):
        self.assert_satisfied(metadata, ["all", "gpu"], pins(LOCKS["gpu"]))

    @pytest.mark.parametrize("python", ["3.11", "3.12"])
    @pytest.mark.parametrize(("lock", "extras"), TFIO_LOCKS.items())
    def test_hold_what_setup_asks_for_on_the_oldest_stack(self, metadata, lock, extras, python):
        locked = pins(lock, python)
        self.assert_satisfied(metadata, extras, locked)
        assert locked["tensorflow"].startswith("2.16.")

    @pytest.mark.parametrize(
        "name", ["apache-beam", "google-cloud-storage", "ml-dtypes", "numpy", "protobuf", "tensorflow"]
    )
    def test_the_oldest_stack_is_where_ranges_begin(self, metadata, name):
        """What is older than any stack that is tested is not promised."""
        (wanted,) = [line for line in map(Requirement, metadata["install_requires"]) if line.name == name]
        (least,) = [one.version for one in wanted.specifier if one.operator == ">="]
        assert f"{pins('requirements-tfio.lock')[name]}.".startswith(f"{least}.")

    def test_tools_go_with_the_oldest_stack(self):
        production, everything = (pins(lock) for lock in TFIO_LOCKS)
        assert production.items() <= everything.items()

    def assert_satisfied(self, metadata, extras, locked):
        wanted = metadata["install_requires"] + [line for extra in extras for line in metadata["extras_require"][extra]]
        for requirement in map(Requirement, wanted):
            version = locked.get(canonicalize_name(requirement.name))
            assert version, f"setup.py asks for {requirement}, which the lock does not hold: run `make lock`"
            assert requirement.specifier.contains(version), f"setup.py asks for {requirement}, the lock has {version}"

    @pytest.mark.parametrize("lock", ["dev", "gpu"])
    def test_agree_with_each_other(self, lock):
        runtime, other = pins(LOCKS["runtime"]), pins(LOCKS[lock])
        assert {name: other.get(name) for name in runtime} == runtime

    @pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
    @pytest.mark.parametrize("backend", BACKEND_LOCKS)
    def test_backend_lock_goes_with_the_runtime_lock(self, backend, python):
        runtime, added = pins(LOCKS["runtime"], python), pins(BACKEND_LOCKS[backend], python)
        assert backend in added
        assert added.get("jax") == added.get("jaxlib")
        assert {name: runtime[name] for name in added.keys() & runtime.keys()}.items() <= added.items()

    @pytest.mark.parametrize(
        ("lock", "least"),
        [*((name, 50) for name in (*LOCKS.values(), *TFIO_LOCKS)), *((name, 2) for name in BACKEND_LOCKS.values())],
    )
    def test_pin_and_hash_everything(self, lock, least):
        entries = lock_entries(lock)
        assert len(entries) > least
        for entry, hashes in entries:
            assert re.fullmatch(r"==[^,*]+", str(entry.specifier)), f"{entry} is not pinned"
            assert hashes, f"{entry} has no hash"
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes)

    def test_bring_what_building_the_project_needs(self):
        """It is installed with --no-build-isolation."""
        for requirement in map(Requirement, tomllib.loads(read("pyproject.toml"))["build-system"]["requires"]):
            assert requirement.specifier.contains(pins(LOCKS["runtime"])[requirement.name])

    def test_marker_environment_is_understood(self):
        assert Marker("sys_platform == 'darwin'").evaluate(PLATFORMS[2])


class TestImage:
    def images(self):
        return re.findall(r"^FROM (\S+:\S+)", read("Dockerfile"), re.MULTILINE)

    def test_has_the_locks_beam(self):
        """And the Beam of the oldest stack, for the stage `tfio`."""
        found = [image.rsplit(":")[1] for image in self.images() if image.startswith("apache/beam_")]
        assert found == [pins(lock)["apache-beam"] for lock in (LOCKS["runtime"], "requirements-tfio.lock")]

    def test_has_one_python_which_the_locks_were_made_for(self):
        pythons = {image for image in self.images() if image.startswith("python:")}
        assert len(pythons) == 1
        (minor,) = re.findall(r"^python:(\d+\.\d+)-", pythons.pop())
        assert f"apache/beam_python{minor}_sdk:" in read("Dockerfile")
        assert f"--python-version {minor} " in read("Makefile")

    @pytest.mark.skipif(shutil.which("hadolint", path=Path(sys.executable).parent) is None, reason="no hadolint here")
    def test_passes_hadolint(self):
        hadolint = Path(sys.executable).with_name("hadolint")
        done = subprocess.run([hadolint, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
        assert (done.stdout, done.returncode) == ("", 0)

    def test_copies_only_allowed_files(self):
        """A file that .dockerignore keeps out fails the build only where there is a Docker to build with."""
        allowed = {line[1:].split("/")[0] for line in read(".dockerignore").splitlines() if line.startswith("!")}
        copied = re.findall(r"^COPY (?!--from)(.+) \S+$", read("Dockerfile"), re.MULTILINE)
        names = {name for line in copied for name in line.split()}
        assert {name.split("/")[0] for name in names} == allowed
        assert all((ROOT / name).exists() for name in names)


@pytest.fixture(scope="module")
def tracked():
    """The files git tracks, with their content."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return {name: (ROOT / name).read_bytes() for name in listing.stdout.split("\0") if (ROOT / name).is_file()}


class TestTrackedFiles:
    # Written so that they do not find themselves.
    TRACES = re.compile(
        rb"/(?:root|work|home/[a-z]+|Users/[a-z]+)/(?!\.\.\.)"
        rb"|--(?:extra-)?index[-]url[ =]|--find[-]links[ =]|--trusted[-]host[ =]"
        rb"|(?<![=.\d])(?:10|192\.168)\.\d{1,3}\.\d{1,3}\.\d{1,3}\b(?!\.)"  # not a version after "=="
    )

    def test_name_no_machine_and_no_index(self, tracked):
        found = {
            f"{name}: {match[0].decode()}"
            for name, content in tracked.items()
            for match in self.TRACES.finditer(content)
        }
        assert not found

    @pytest.mark.parametrize(
        "text", [b"see /ro" + b"ot/x", b"/wo" + b"rk/main", b"--index" + b"-url=", b"10" + b".0.0.7"]
    )
    def test_pattern_finds_machine_and_index_names(self, text):
        assert self.TRACES.search(text)

    def test_are_small(self, tracked):
        assert not {name: len(content) for name, content in tracked.items() if len(content) > 1_000_000}


class TestPackage:
    def test_holds_every_module(self, metadata):
        there = setuptools.find_packages(str(ROOT), include=["imagebeam*", "pipelines*", "transforms*"])
        assert sorted(metadata["packages"]) == sorted(there)
        for package in [
            "imagebeam",
            "pipelines",
            "transforms",
        ]:  # PEP 561: the marker of a package holds for those below it.
            assert (ROOT / package / "py.typed").exists()

    def test_command_is_there(self, metadata):
        from pipelines import cli

        assert metadata["entry_points"]["console_scripts"] == ["imagebeam = pipelines.cli:main"]
        assert callable(cli.main)

    def test_license_is_the_apache_license(self, metadata):
        text = read("LICENSE")
        assert metadata["license"] == "Apache-2.0"
        assert "Apache License\n                           Version 2.0, January 2004" in text
        assert "END OF TERMS AND CONDITIONS" in text


class TestDocuments:
    def test_changelog_has_an_unreleased_section_first(self):
        assert re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)[0] == "[Unreleased]"

    def test_contributing_lists_every_package(self, metadata):
        listed = set(
            re.findall(
                r"^\| `((?:transforms|pipelines|imagebeam)(?:/\w+)*)/` \|", read("CONTRIBUTING.md"), re.MULTILINE
            )
        )
        assert listed == {name.replace(".", "/") for name in metadata["packages"]} - {"transforms"}

    def test_contributing_names_every_task_of_the_makefile(self):
        tasks = set(re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.MULTILINE))
        assert tasks - {"help"} == set(re.findall(r"`make ([a-z-]+)`", read("CONTRIBUTING.md")))
