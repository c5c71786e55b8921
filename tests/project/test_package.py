"""The wheel and the sdist: built in isolation, installed where nothing else is, used outside the checkout."""

import tarfile
import zipfile

import pytest

from tests.support import environments
from tests.support.environments import Environment

pytestmark = [pytest.mark.slow, pytest.mark.install, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a wheel, made from the sdist beside it."""
    return environments.build(tmp_path_factory.mktemp("dist"))


def members(wheel):
    """Name -> bytes of what a wheel installs."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def test_archives_hold_every_module_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    files = [path for folder in environments.PACKAGES for path in folder.rglob("*") if path.suffix in {".py", ".typed"}]
    expected = {str(path.relative_to(environments.ROOT)): path.read_bytes() for path in files}
    found = members(wheel)
    assert {name: found.get(name) for name in expected} == expected
    others = {name for name in found if name not in expected}
    assert all(
        name.split("/")[0] in {folder.name for folder in environments.PACKAGES} for name in others
    )  # such as a template


def test_sdist_has_the_metadata(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.py", "pyproject.toml", "PKG-INFO"} <= names
    assert not [name for name in names if name.startswith(("tests/", ".venv", ".cache"))]


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def test_installs_into_an_empty_environment(built, tmp_path, kind):
    """As README says it for those who have no checkout; what is newest today is taken, within setup.py's ranges."""
    (archive,) = built.glob(kind)
    environment = Environment(tmp_path / "environment")
    if kind == "*.whl":
        environment.pip("install", "--quiet", f"{archive}[all]")
        environment.pip("check")
        output = environment.imagebeam("demo", "--images", "100")
        assert "accuracy" in output
        assert (environment.home / "demo-run" / "classifier" / "classifier.keras").exists()
        environment.python("-c", "import sys, imagebeam; [getattr(imagebeam, name) for name in dir(imagebeam)]")
    else:
        environment.pip("install", "--quiet", "--no-deps", archive)  # built from source, in isolation
        assert members(next(built.glob("*.whl"))).keys() <= {
            str(path.relative_to(environment.site_packages)) for path in environment.site_packages.rglob("*")
        }
    assert environment.command("imagebeam", "--version") == "imagebeam 0.1.0\n"
    assert "jobs:" in environment.command("imagebeam", "--help")
