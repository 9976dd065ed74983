"""The house's own rules that no linter holds: sizes, packages that get installed, locks that hold what is asked for."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ("backends", "bench", "proxy", "scheduler", "workloads")
MODULE_LINES = 400
FUNCTION_LINES = 70

MODULES = sorted(
    path.relative_to(ROOT)
    for package in (*INSTALLED, "tests")
    for path in (ROOT / package).rglob("*.py")
    if "node_modules" not in path.parts
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def functions_over(source: str, limit_lines: int) -> list[tuple[str, int]]:
    """Name and lines, decorators and docstring counted, of each function longer than that."""
    long = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno is not None
            lines = node.end_lineno - first + 1
            if lines > limit_lines:
                long.append((node.name, lines))
    return long


def test_there_are_modules_to_judge() -> None:
    assert {module.parts[0] for module in MODULES} == {*INSTALLED, "tests"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_answers_one_question(module: Path) -> None:
    source = (ROOT / module).read_text()
    lines = len(source.splitlines())
    assert lines <= MODULE_LINES, f"{module} has {lines} lines, {MODULE_LINES} are allowed: split it by question"
    assert functions_over(source, FUNCTION_LINES) == [], f"{module}: {FUNCTION_LINES} lines a function are allowed"


def test_functions_are_measured_with_decorators_and_wherever_they_stand() -> None:
    source = (
        "class A:\n    @decorated\n    def short(self):\n        pass\n\n    async def long(self):\n"
        + "        pass\n" * 4
    )
    assert functions_over(source, 4) == [("long", 5)]
    assert functions_over(source, 2) == [("short", 3), ("long", 5)]


@pytest.mark.parametrize("package", INSTALLED)
def test_every_folder_of_modules_is_a_package(package: str) -> None:
    """A folder without __init__.py would be missing from the wheel, and would not be missed in a checkout."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
    assert (ROOT / package / "py.typed").exists()


def pins(lock: Path) -> dict[str, str]:
    """Name → version of each line that pins one."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        (
            "deploy/requirements-build.lock",
            tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"],
        ),
        ("requirements.lock", PROJECT["dependencies"] + EXTRAS["otlp"]),
        ("tests/requirements-dev.lock", PROJECT["dependencies"] + EXTRAS["dev"]),
        ("tests/vllm/requirements-clients.lock", PROJECT["dependencies"] + EXTRAS["clients"]),
    ],
)
def test_a_lock_holds_what_pyproject_asks_for(lock: str, wanted: list[str]) -> None:
    pinned = pins(ROOT / lock)
    assert pinned
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{lock} lacks {requirement.name}: run make lock"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{lock}: {text} is not {version}: run make lock"
        )


@pytest.mark.parametrize("lock", sorted(path.relative_to(ROOT) for path in ROOT.glob("**/requirements*.lock")), ids=str)
def test_a_lock_has_a_hash_for_each_pin_and_names_no_place(lock: Path) -> None:
    text = (ROOT / lock).read_text()
    for block in re.split(r"\n(?=\S)", text):
        if re.match(r"[A-Za-z0-9._-]+==", block):
            assert "--hash=sha256:" in block, f"{lock}: no hash for {block.splitlines()[0]}"
    # Where packages come from is the installing machine's own setting.
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text)
