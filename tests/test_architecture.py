"""The rooms: who may import whom, checked where it happens, and the map that names every file."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from ray_jobs.__main__ import JOBS

ROOT = Path(__file__).parent.parent
ROOMS = ("shards", "projector", "ray_jobs")
# Bottom up: a folder may import those before it and itself.
FOLDERS = (
    "shards.errors",
    "shards.stores",
    "shards.format",
    "shards.dataset",
    "shards.prompts",
    "shards.sources",
    "shards.scenes",
    "shards.tools",
    "shards",
    "projector.options",
    "projector.models",
    "projector.inference",
    "projector.data",
    "projector.making",
    "projector.network",
    "projector.closed_form",
    "projector.teaching",
    "projector.training",
    "projector.steering",
    "projector.evaluation",
    "projector.comparison",
    "projector",
    "ray_jobs.cli",
    "ray_jobs.cluster",
    "ray_jobs.planning",
    "ray_jobs.progress",
    "ray_jobs.building",
    "ray_jobs.report",
    "ray_jobs.jobs",
    "ray_jobs",
)
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
    assert intruders("import json, numpy", ("numpy", "ray")) == ["numpy"]


@pytest.mark.parametrize("package", ["shards", "projector"])
def test_importing_a_package_is_light(package):
    heavy = ("torch", "pyarrow", "pandas", "boto3", "ray", "diffusers", "transformers", "matplotlib")
    assert intruders(f"import {package}", heavy) == []


def test_a_mistake_in_options_is_told_before_anything_heavy_is_imported():
    wrong = "from ray_jobs.__main__ import main; assert main(['train', '--train.nonsense', '1']) == 2"
    assert intruders(wrong, ("numpy", "torch", "pyarrow", "boto3", "ray", "diffusers", "transformers")) == []


def test_a_plan_takes_neither_torch_nor_ray():
    """Which take 300 MB, more than a plan of a million."""
    assert intruders("import ray_jobs.jobs.plan", ("torch", "ray", "transformers", "diffusers")) == []


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


def test_imports_run_down_the_list_of_folders():
    graph = {
        module: {name for name in imports_of(file_of(module)) if name.split(".")[0] in ROOMS}
        for room in ROOMS
        for module in modules(room)
    }
    assert climbing(graph) == []
    done: set[str] = set()
    while len(done) < len(graph):
        ready = [module for module in graph if module not in done and graph[module] & graph.keys() <= done]
        assert ready, f"import cycle among {sorted(graph.keys() - done)}"
        done.update(ready)


def test_the_rule_sees_an_import_that_climbs():
    assert climbing({"shards.stores.s3": {"shards.format.plan"}}) == [
        "shards.stores.s3 imports shards.format.plan"
    ]
    assert climbing({"projector.data.pairs": {"ray_jobs.cli.log"}}) == [
        "projector.data.pairs imports ray_jobs.cli.log"
    ]


def climbing(graph: dict[str, set[str]]) -> list[str]:
    """Imports from a folder further up in FOLDERS."""
    return [
        f"{module} imports {name}"
        for module, names in graph.items()
        for name in sorted(names)
        if rank_of(name) > rank_of(module)
    ]


def rank_of(module: str) -> int:
    """The place in FOLDERS of the longest name there that a module's begins with."""
    return FOLDERS.index(max((f for f in FOLDERS if f"{module}.".startswith(f"{f}.")), key=len))


OPTIONS = {name: set(model.model_fields) for job in JOBS.values() for name, model in job.sections.items()}
FILLED_IN = "{}"


def options_spelled(source: str) -> list[str]:
    """What strings and comments of a module spell as options of jobs are, in full or as far as it is not filled in."""
    texts = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else FILLED_IN for part in node.values]
            texts.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    spelled = re.compile(rf"\b({'|'.join(OPTIONS)})\.({FILLED_IN}|[a-z_]+)")
    return sorted(
        {
            f"{section}.{word}"
            for text in texts
            for section, word in spelled.findall(text)
            if word == FILLED_IN or any(option.startswith(word) for option in OPTIONS[section])
        }
    )


@pytest.mark.parametrize("room", ["shards", "projector"])
def test_lower_rooms_spell_no_option_of_a_job(room):
    """They raise OptionError with the option's name, and the job adds its section (`ray_jobs.cli.option_errors`)."""
    found = {
        str(path.relative_to(ROOT)): spelled
        for path in sorted((ROOT / room).rglob("*.py"))
        if (spelled := options_spelled(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('raise E(f"import.source = {place!r}: gone")', ["import.source"]),
        ('def f(option: str = "build.models"): ...', ["build.models"]),
        ('raise E("lower "\n"train.learning_rate")', ["train.learning_rate"]),
        ('option = f"import.min_{name}"', ["import.min_"]),
        ('option = f"train.{name}"', ["train.{}"]),
        ("x = 1  # what evaluate.checkpoint is called", ["evaluate.checkpoint"]),
        ('"""As --train.arch ridge does it."""', ["train.arch"]),
        ('raise E("source = {place!r}: gone")', []),
        ("options = train.data + build.samples", []),
        ("import projector.training.loop", []),
        ('"""See torch.export.save, and the model that one can train. layer by layer."""', []),
    ],
)
def test_the_rule_sees_an_option_that_is_spelled(source, found):
    assert options_spelled(source) == found


def test_every_folder_has_its_place_and_says_in_a_sentence_what_is_there():
    for folder in folders():
        assert folder.replace("/", ".") in FOLDERS, folder
        said = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
        assert said, folder
        assert said.endswith("."), folder
        assert "\n" not in said, folder


def folders() -> list[str]:
    return [
        str(path.parent.relative_to(ROOT))
        for room in ROOMS
        for path in sorted((ROOT / room).glob("*/__init__.py"))
    ]


def test_no_two_files_and_no_two_classes_share_a_name():
    """Jobs are the exception: their files bear the names of their commands."""
    stems: dict[str, list[str]] = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            if path.stem not in ("__init__", "__main__") and path.parent.name != "jobs":
                stems.setdefault(path.stem, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in stems.items() if len(paths) > 1} == {}
    classes: dict[str, list[str]] = {}
    for path in [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in classes.items() if len(paths) > 1} == {}


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


def test_the_page_names_each_folder_once_and_nothing_that_is_not_there():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = [line.split("`")[1].rstrip("/") for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(folders())
    named = {word for word in page.split("`") if word.endswith(".py") and word.split("/")[0] in ROOMS}
    assert [word for word in sorted(named) if not (ROOT / word).is_file()] == []


@pytest.mark.parametrize("name", ["Projector", "VLEmbeddingExtractor", "blend_interpolate"])
def test_using_a_projector_needs_no_factory(name):
    """What `pip install z-image-projector` brings is enough; the factory's packages are an extra."""
    factory = (
        "ray",
        "pyarrow",
        "boto3",
        "botocore",
        "diffusers",
        "jinja2",
        "matplotlib",
        "tensorboard",
        "yaml",
    )
    assert intruders(f"from projector import {name}", factory) == []
