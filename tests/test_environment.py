"""pyproject.toml, environment.yml and constraints.txt say the same, each in its own words."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
# What `make` installs. The extra bench has peers to be held against, which one adds by hand.
EXTRAS = [extra for extra in PROJECT["optional-dependencies"] if extra != "bench"]
CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge calls it otherwise
SUPPORTED = ("3.11", "3.12", "3.13")
PLATFORMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
]


def requirements(*extras: str) -> dict[str, Requirement]:
    """What pyproject.toml asks for, by canonical name: dependencies and the named extras."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(each.name): each for each in found}


def pins() -> dict[str, Version]:
    """The exact version of each distribution in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def lower_bound(specifier: SpecifierSet) -> str:
    """The version of the one `>=` in a specifier."""
    (bound,) = (each.version for each in specifier if each.operator == ">=")
    return bound


def needed() -> set[str]:
    """All that `make` installs on the supported Pythons and systems.

    Follows the metadata of what is installed here; a name that isn't installed ends its branch.
    """
    environments = [
        system | {"python_version": python, "python_full_version": f"{python}.0"}
        for python in SUPPORTED
        for system in PLATFORMS
    ]
    found: set[tuple[str, frozenset[str]]] = set()
    queue = list(requirements(*EXTRAS).values())
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in found:
            continue
        found.add((name, extras))
        try:
            queue += [
                child
                for child in map(Requirement, distribution(name).requires or [])
                if child.marker is None
                or any(
                    child.marker.evaluate(environment | {"extra": extra})
                    for environment in environments
                    for extra in ("", *extras)
                )
            ]
        except PackageNotFoundError:
            continue
    # PyTorch's Linux build asks for its CUDA packages at exact versions by itself.
    return {name for name, _ in found if not re.match(r"nvidia-|cuda-|triton$", name)}


def test_pyproject_has_lower_bounds_only() -> None:
    for requirement in requirements().values():
        assert [each.operator for each in requirement.specifier] == [">="], str(requirement)


def test_environment_has_the_bounds_of_pyproject() -> None:
    conda = [Requirement(line) for line in CONDA if isinstance(line, str)]
    bounds = {each.name: lower_bound(each.specifier) for each in conda if each.specifier}
    expected = {
        CONDA_NAMES.get(name, name): lower_bound(each.specifier)
        for name, each in requirements().items()
    }
    expected["python"] = lower_bound(SpecifierSet(PROJECT["requires-python"]))
    expected["ipykernel"] = lower_bound(requirements("book")["ipykernel"].specifier)
    assert bounds == expected
    assert {each.name for each in conda} - set(bounds) == {"jupyterlab", "pip"}


def test_environment_installs_vaelib_alone_by_pip() -> None:
    (pip,) = (line["pip"] for line in CONDA if isinstance(line, dict))
    assert pip == ["-e ."]


@pytest.mark.parametrize("name", requirements(*EXTRAS))
def test_constraints_lie_within_the_bounds(name: str) -> None:
    requirement = requirements(*EXTRAS)[name]
    assert name in pins(), f"constraints.txt does not pin {name}"
    assert pins()[name] in requirement.specifier


def test_constraints_pin_everything_and_nothing_else() -> None:
    missing = needed() - set(pins())
    assert not missing, f"add to constraints.txt: {sorted(missing)}"
    surplus = set(pins()) - needed()
    assert not surplus, f"nothing asks for these in constraints.txt: {sorted(surplus)}"


def test_what_is_installed_here_is_what_constraints_pin() -> None:
    for name, version in pins().items():
        try:
            installed = Version(distribution(name).version)
        except PackageNotFoundError:
            continue  # for another system or Python
        # A local build of the pinned version (2.13.0+cpu) is that version.
        assert installed.public == version.public, f"{name}: make again, or renew constraints.txt"


def test_the_oldest_python_is_the_same_everywhere() -> None:
    oldest = lower_bound(SpecifierSet(PROJECT["requires-python"]))
    assert oldest == SUPPORTED[0]
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in (
        ROOT / "tools" / "install.sh"
    ).read_text("utf-8")
    for page in ("README.md", "Makefile"):
        assert f"Python {oldest} or newer" in (ROOT / page).read_text("utf-8"), page
