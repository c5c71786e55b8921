"""What the packages import is locked for production and asked for in setup.py."""

import ast
import functools
import runpy
import sys
from importlib import metadata

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.environments import LOCK, PACKAGES, ROOT, pins

FILES = sorted(path for folder in PACKAGES for path in folder.rglob("*.py"))
OWN = {folder.name for folder in PACKAGES} | {"imagebeam"}
BROUGHT_BY_USERS = {"jax", "torch", "onnxruntime"}
"""What Keras can compute with in TensorFlow's place, imported where it does, and what tries an export to ONNX."""

NAMESPACES = {"google"}
"""Packages that many distributions share: the next name tells which."""


def imported(path):
    """The absolute modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def foreign(path):
    """Of those, the ones that are neither Python's nor the project's."""
    return [name for name in imported(path) if name.split(".")[0] not in OWN | sys.stdlib_module_names]


def distributions(module):
    """Names of the installed distributions that have the module."""
    parts = module.split(".")
    if parts[0] not in NAMESPACES:
        return {canonicalize_name(name) for name in providers().get(parts[0], ())}
    return in_namespace("/".join(parts[: 3 if parts[1] == "cloud" else 2]))


@functools.cache
def providers():
    return metadata.packages_distributions()


@functools.cache
def in_namespace(prefix):
    """Names of the installed distributions that have files below a folder which no single one owns."""
    return {
        canonicalize_name(entry.name)
        for entry in metadata.distributions()
        if entry.name.startswith(tuple(NAMESPACES | {"protobuf"}))
        and any(str(file).startswith((f"{prefix}/", f"{prefix}.py")) for file in entry.files or ())
    }


@functools.cache
def asked_for():
    """The packages that setup.py names, in install_requires or in an extra that users install."""
    captured = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: captured.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    extras = [line for extra, lines in captured["extras_require"].items() if extra != "dev" for line in lines]
    return {canonicalize_name(Requirement(line).name) for line in [*captured["install_requires"], *extras]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_in_the_production_lock(path):
    locked = set(pins(LOCK))
    for module in foreign(path):
        if module.partition(".")[0] in BROUGHT_BY_USERS:
            continue
        found = distributions(module)
        assert found & locked, f"{module} comes from {found or 'nothing installed'}: not in {LOCK}"
        assert found & asked_for(), f"{module} comes from {found}: setup.py does not ask for it"
