"""docs/troubleshooting.md: what it quotes is what the program says, what it names exists, what it shows runs."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from ray_jobs.__main__ import JOBS
from ray_jobs.cli.parse import parse
from shards.__main__ import main as run_tool
from shards.format.plan import make_plan
from shards.prompts.prompt import Prompt
from tests_support import a_plan, commit_shard

ROOT = Path(__file__).parent.parent
ROOMS = ("shards", "projector", "ray_jobs")
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
GAP = "…"  # what changes from one time to the next
PLACEHOLDER = "\0"  # the same in the source: stands in no fixed piece
SECTIONS = {section for job in JOBS.values() for section in job.sections}
FEWEST_LETTERS = 16  # of all fixed pieces: less would be found anywhere


def tables():
    """The rows of every table of the page, without the header and the line below it."""
    found, rows = [], []
    for line in [*PAGE.splitlines(), ""]:
        if line.startswith("| "):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows:
            found.append(rows)
            rows = []
    return found


def quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


MESSAGES = [
    message for rows in tables() if rows[0][0] == "message" for row in rows[2:] for message in quoted(row[0])
]
STAGES = next(rows[2:] for rows in tables() if rows[0][0] == "stage")
CAUSES = [
    words
    for row in STAGES
    for cell in row[1:]
    for words in quoted(cell)
    if " " in words and words[:2] != "--"
]


def said_by(source):
    """Every string expression of a module but its docstrings; values that are filled in are one sign each."""
    tree = ast.parse(source)
    passed_over = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            passed_over.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            passed_over.update(node.values)
    for node in ast.walk(tree):
        if node in passed_over:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values
            )


@cache
def sayings():
    return [
        saying
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for saying in said_by(path.read_text())
    ]


def without_section(message):
    """As `shards` and `projector` say it: a job puts its section before their option."""
    section, dot, rest = message.partition(".")
    return rest if dot and section in SECTIONS else message


def occurs(message, saying):
    """Whether the fixed pieces of a message stand in a string, in their order."""
    place = 0
    for piece in filter(None, message.split(GAP)):
        place = saying.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return True


@pytest.mark.parametrize("message", MESSAGES + CAUSES)
def test_what_is_quoted_is_said(message):
    assert sum(len(piece.strip()) for piece in message.split(GAP)) >= FEWEST_LETTERS, "too little to go by"
    wordings = {message, without_section(message)}
    found = any(occurs(wording, saying) for saying in sayings() for wording in wordings)
    assert found, "no string of the source holds it"


@pytest.mark.parametrize(
    ("message", "source", "found"),
    [
        ("the disk … is full", 'raise E(f"the disk {name} " "is full")', True),
        ("the disk … is full", 'raise E(f"the disk {name} " "is nearly full")', False),
        ("the disk … is full", 'raise E("is full", f"the disk {name}")', False),
        ("is full the disk", 'raise E("the disk is full")', False),
        ("is full … the disk", 'raise E("the disk is full")', False),
        ("the disk is full", 'raise E(f"the {disk} is full")', False),
        ("the disk is full", '"""the disk is full"""', False),
        ("the disk is full", "pass  # the disk is full", False),
        ("the disk is full", 'raise E("the disk" if a else "is full")', False),
    ],
)
def test_the_search_sees_a_message_that_changed(message, source, found):
    assert any(occurs(message, saying) for saying in said_by(source)) == found


def test_rows_are_whole_and_no_message_stands_twice():
    for rows in tables():
        assert {len(row) for row in rows} == {len(rows[0])}
        assert all(cell for row in rows for cell in row)
    assert len(MESSAGES) == len(set(MESSAGES))


def test_every_stage_stands_in_the_page():
    stages = set()
    for room in ("projector", "ray_jobs"):
        for path in (ROOT / room).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                called = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
                if called in ("Stage", "Failure.from_exception") and isinstance(call.args[0], ast.Constant):
                    stages.add(call.args[0].value)
    assert {name for row in STAGES for name in quoted(row[0])} == stages


def test_every_option_that_is_named_exists():
    sections = {name: model for job in JOBS.values() for name, model in job.sections.items()}
    named = re.findall(rf"`(?:--)?({'|'.join(sections)})\.(\w+)", PAGE)
    assert len(named) > 20
    assert [name for name in named if name[1] not in sections[name[0]].model_fields] == []


@pytest.mark.parametrize("page", ["troubleshooting.md", "guide.md"])
def test_every_link_leads_somewhere(page):
    text = (ROOT / "docs" / page).read_text()
    links = re.findall(r"\]\(([\w./-]*)#?([\w-]*)\)", text)
    assert links
    for place, heading in links:
        target = ROOT / "docs" / (place or page)
        assert target.exists(), place
        titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in [title.lower().replace(" ", "-") for title in titles]


def blocks():
    return re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def data(make_dataset, tmp_path, monkeypatch):
    """A dataset `data/pairs` in the current folder with one sample that failed, and its row."""
    monkeypatch.chdir(tmp_path)
    plan = a_plan()
    dataset, _ = make_dataset(root=str(tmp_path / "data" / "pairs"), plan=plan, shards=plan.shards[1:])
    commit_shard(dataset, plan.shards[0], tmp_path / "spool", failing=(1,))
    return plan.shards[0].samples[1]


def test_the_tools_find_the_sample(data, capsys):
    commands = [shlex.split(line, comments=True) for _, text in blocks() for line in text.splitlines()]
    shown = []
    for words in commands:
        if words[:3] == ["python", "-m", "shards"]:
            assert run_tool(words[3:]) == 0
            shown.append(capsys.readouterr().out)
    causes, one_line, rows, more_tries = shown
    assert '"stage": "image"' in causes
    assert f"{data.key}  image: RuntimeError: no picture  (1 tries)" in one_line
    assert f'"seed": {data.seed}' in rows
    assert more_tries == one_line


def test_the_program_lists_it(data):
    (program,) = [text for language, text in blocks() if language == "python"]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{data.key}\timage\tRuntimeError\tno picture\t{data.caption}\n"


def test_alone_it_is_the_same_sample(data):
    """A caption by itself gets the id and the seed that it has among others; the command for that one parses."""
    (alone,) = [
        sample
        for shard in make_plan(
            [Prompt(data.caption)], seed=7, val_fraction=0.3, samples_per_shard=4, segments=(1,)
        ).shards
        for sample in shard.samples
    ]
    assert (alone.id, alone.seed) == (data.id, data.seed)
    (command,) = [line for _, text in blocks() for line in text.splitlines() if "ray_jobs" in line]
    assert parse(shlex.split(command)[3:], JOBS).job == "build"
