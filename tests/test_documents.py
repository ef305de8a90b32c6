"""Every command in README.md and docs/ is one that the program takes.

tests/ray_jobs/test_submit.py, tests/ray_jobs/test_guide.py and tests/test_troubleshooting.py run those of their pages.
"""

import ast
import importlib
import re
import shlex

import pytest

from ray_jobs.__main__ import JOBS
from ray_jobs.cli.parse import parse
from ray_support import ROOT, blocks
from shards.__main__ import main as run_tool

PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]

OWN = ("projector", "shards", "ray_jobs")


def commands(page):
    """The words after `python` of every command on a page, in its blocks and in its sentences."""
    lines = [line for _, text in blocks(page) for line in text.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`(python [^`\n]*)`", prose)
    found = [re.search(r"\bpython ((?:-m (?:ray_jobs|shards)|benchmarks/).*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


@pytest.mark.parametrize("page", PAGES)
def test_every_job_and_benchmark_is_one_that_parses(page):
    for words in commands(page):
        if words[:2] == ["-m", "ray_jobs"] and "JOB" not in words:
            parse([word for word in words[2:] if word not in ("--config", "run.yaml")], JOBS)
        elif words[0].startswith("benchmarks/"):
            source = (ROOT / words[0]).read_text()
            assert [word for word in words if word[:2] == "--" and f'"{word}"' not in source] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_tool_is_one_that_there_is(page, capsys):
    tools = {
        word for words in commands(page) if words[:2] == ["-m", "shards"] for word in words[2].split("|")
    }
    for tool in tools:
        with pytest.raises(SystemExit) as end:
            run_tool([tool, "--help"])
        assert end.value.code == 0


@pytest.mark.parametrize("page", PAGES)
def test_every_name_that_a_page_imports_is_one_that_there_is(page):
    for language, text in blocks(page):
        for node in ast.walk(ast.parse(text)) if language == "python" else ():
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OWN:
                module = importlib.import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_commands_are_found():
    assert all(len(commands(page)) > 8 for page in ("README.md", "docs/guide.md", "docs/performance.md"))


# Words of this project alone, and what the field says.
REPLACED = {"cannot be believed": "is corrupt", "there already": "already exists"}


def test_the_words_are_those_of_the_field():
    pages = [ROOT / page for page in (*PAGES, "shards/FORMAT.md")]
    sources = [path for room in ("shards", "projector", "ray_jobs") for path in (ROOT / room).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}: {old}, say {new}"
        for path in (*pages, *sources)
        for old, new in REPLACED.items()
        if old in path.read_text()
    ]
    assert found == []
