"""The rooms: who may import whom, checked where it happens, and the map that names every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("shards", "projector", "ray_jobs")
FORBIDDEN = {
    "shards": ("projector", "ray_jobs", "ray", "torch", "transformers", "diffusers"),
    "projector": ("ray_jobs", "ray"),
    "ray_jobs": (),
}


def modules(room: str) -> list[str]:
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__main__.py"
    )


def intruders(statement: str, forbidden: tuple[str, ...]) -> list[str]:
    """Run an import in a fresh interpreter and name the forbidden packages it drew in."""
    check = f"import sys; {statement}; print(*sorted(set({forbidden!r}) & {{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", check], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("room", ["shards", "projector"])
def test_no_module_of_a_room_draws_in_what_the_room_may_not_know(room):
    statement = "; ".join(f"import {module}" for module in modules(room))
    assert intruders(statement, FORBIDDEN[room]) == []


def test_the_check_sees_an_intruder():
    assert intruders("import json, torch", ("torch", "ray")) == ["torch"]


@pytest.mark.parametrize("package", ["shards", "projector"])
def test_importing_a_package_is_light(package):
    heavy = ("torch", "pyarrow", "pandas", "boto3", "ray", "diffusers", "transformers", "matplotlib")
    assert intruders(f"import {package}", heavy) == []


def imports_of(path: Path) -> set[str]:
    """Modules imported when the file runs or one of its functions does; what only type checkers read is left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module)
    return names


def test_imports_run_one_way_without_cycles():
    graph = {
        module: {name for name in imports_of(file_of(module)) if name.split(".")[0] in ROOMS}
        for room in ROOMS
        for module in modules(room)
    }
    for module, imported in graph.items():
        rank = ROOMS.index(module.split(".")[0])
        assert all(ROOMS.index(name.split(".")[0]) <= rank for name in imported), module
    done: set[str] = set()
    while len(done) < len(graph):
        ready = [module for module in graph if module not in done and graph[module] & graph.keys() <= done]
        assert ready, f"import cycle among {sorted(graph.keys() - done)}"
        done.update(ready)


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_there_is_no_room_for_forgotten_code():
    assert not [
        path
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if path.stem in ("utils", "common", "helpers")
    ]


def test_the_map_names_every_file():
    page = (ROOT / "docs" / "architecture.md").read_text()
    files = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    assert [file for file in files if f"`{file}`" not in page] == []
    named = {word for word in page.split("`") if word.endswith(".py") and word.split("/")[0] in ROOMS}
    assert named - set(files) == set(), "the map names files that do not exist"
