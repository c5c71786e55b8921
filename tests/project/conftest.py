"""The environment that `make production-check` works in, made once for all its modules."""

from importlib import metadata

import pytest
from packaging.utils import canonicalize_name

from tests.support import environments
from tests.support.environments import ROOT, Environment, pins
from tests.support.newer_wheels import write_newer_wheels


@pytest.fixture(scope="session")
def production(tmp_path_factory):
    """Installed with newer releases of everything on offer, without a cache."""
    folder = tmp_path_factory.mktemp("production")
    newer = write_newer_wheels(folder / "newer", [ROOT / f"requirements{name}.lock" for name in ("", "-jax", "-torch")])
    environment = Environment(folder / "all", newer)
    bare = environment.installed()
    environment.install_lock(ROOT / "requirements.lock")
    (wheel,) = environments.build(tmp_path_factory.mktemp("dist")).glob("*.whl")
    environment.pip(*environments.INSTALL, wheel)
    environment.pip("check")
    assert environment.installed() == bare | pins("requirements.lock") | {"imagebeam": metadata.version("imagebeam")}
    return environment


@pytest.fixture(scope="session")
def requires(production):
    """Package -> its Requires-Dist lines, of all that is installed."""
    found = metadata.distributions(path=[str(production.site_packages)])
    return {canonicalize_name(entry.name): entry.requires or [] for entry in found}
