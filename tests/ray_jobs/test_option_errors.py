"""The section that a job puts before the option that `shards` or `projector` names."""

import ast
import re
from pathlib import Path

import pytest

from ray_jobs.__main__ import JOBS
from ray_jobs.cli.import_options import ImportOptions
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.run_options import BuildOptions
from shards.errors import CorruptShardError, OptionError, StorageError, UsageError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_column = 'x': no such column", "import.image_column = 'x': no such column"),
        ("models.image = 'x': no such folder", "import.models.image = 'x': no such folder"),
        ("images is needed", "import.images is needed"),
        ("source: {0..1: close each brace", "import.source: {0..1: close each brace"),
        ("source", "import.source"),
        ("projector = 'x': no such folder", "projector = 'x': no such folder"),
        ("", ""),
    ],
)
def test_an_option_of_the_section_gets_it_and_other_words_stay(text, said):
    with pytest.raises(UsageError) as caught, options_of("import", ImportOptions):
        raise OptionError(text)
    assert str(caught.value) == said


def test_the_inner_section_is_the_one_that_is_named():
    @options_of("import", ImportOptions)
    def outer():
        with options_of("build", BuildOptions):
            raise OptionError("samples = 0: too few")

    for _ in range(2):  # a decorator is entered anew each time
        with pytest.raises(UsageError, match=r"^build\.samples = 0"):
            outer()


@pytest.mark.parametrize("kind", [UsageError, StorageError, CorruptShardError])
def test_other_errors_stay_as_they_are(kind):
    error = kind("source: gone")
    with pytest.raises(kind) as caught, options_of("import", ImportOptions):
        raise error
    assert caught.value is error


ROOT = Path(__file__).parents[2]
FIELDS = {
    field for job in JOBS.values() for section in job.sections.values() for field in section.model_fields
}


@pytest.mark.parametrize("room", ["shards", "projector"])
def test_what_an_error_begins_with_is_an_option_of_a_job(room):
    """Any other first word gets no section, and a renamed option would lose its own unseen."""
    first = {
        found[1]: f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in (ROOT / room).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "OptionError"
        if (found := re.match(r"f?['\"]+(\w+)", ast.unparse(call.args[0])))
    }
    assert first, "none was found: the pattern is out of date"
    assert {word: place for word, place in first.items() if word not in FIELDS} == {}
