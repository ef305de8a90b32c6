"""Options without their section, models given once, the short and the long help, the version."""

import pytest

from ray_jobs.__main__ import JOBS, main
from ray_jobs.cli.parse import parse
from shards.errors import UsageError


@pytest.fixture(autouse=True)
def no_models_from_outside(monkeypatch):
    for name in ("ZIMAGE_IMAGE_MODEL", "ZIMAGE_VL_MODEL"):
        monkeypatch.delenv(name, raising=False)


def build(*words):
    return parse(["build", "--build.output", "x", *words], JOBS).options["build"]


def test_an_own_option_may_stand_without_its_section():
    whole = parse(["build", "--output", "here", "--samples=7", "--layers", "-8,-6"], JOBS).options["build"]
    assert (whole.output, whole.samples, list(whole.layers)) == ("here", 7, [-8, -6])


def test_another_sections_option_may_not():
    with pytest.raises(UsageError, match="unknown option --samples; did you mean"):
        parse(["plan", "--samples", "5"], JOBS)


def test_models_are_given_once_by_flag_file_or_environment(monkeypatch, tmp_path):
    assert build().models == "tiny"
    monkeypatch.setenv("ZIMAGE_IMAGE_MODEL", "image-e")
    monkeypatch.setenv("ZIMAGE_VL_MODEL", "vl-e")
    assert (build().models.image, build().models.vl) == ("image-e", "vl-e")
    file = tmp_path / "run.yaml"
    file.write_text("models: {image: image-f}\n")
    found = build("--config", str(file)).models
    assert (found.image, found.vl) == ("image-f", "vl-e")
    planned = (
        parse(["plan", f"--config={file}", "--models.image", "image-flag"], JOBS).options["build"].models
    )
    assert (planned.image, planned.vl) == ("image-flag", "vl-e")


def test_a_section_that_names_its_own_models_keeps_them(monkeypatch, tmp_path):
    monkeypatch.setenv("ZIMAGE_IMAGE_MODEL", "image-e")
    monkeypatch.setenv("ZIMAGE_VL_MODEL", "vl-e")
    assert build("--build.models", "tiny").models == "tiny"
    file = tmp_path / "run.yaml"
    file.write_text("build: {models: {image: a, vl: b}}\n")
    assert build("--config", str(file)).models.image == "a"
    assert parse(["extract", "--data", "d", "--output", "o"], JOBS).options["extract"].vl == "vl-e"
    mine = parse(["extract", "--data", "d", "--output", "o", "--vl", "mine"], JOBS).options["extract"]
    assert mine.vl == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "--models.vl", "v"], "models.vl is given and models.image is not; give both"),
        (["plan", "--models.vl"], "--models.vl needs a value"),
    ],
)
def test_half_of_the_models_is_an_error(words, message):
    with pytest.raises(UsageError, match=message):
        parse(words, JOBS)


def test_half_of_the_models_is_no_error_where_they_are_not_needed(monkeypatch):
    monkeypatch.setenv("ZIMAGE_VL_MODEL", "vl-e")
    assert parse(["evaluate", "--checkpoint", "c"], JOBS).options["evaluate"].models is None


def test_a_models_section_with_other_keys_is_an_error(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("models: {picture: x}\n")
    with pytest.raises(UsageError, match="section models holds"):
        build("--config", str(file))


def helped(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("job", [job for job in JOBS.values() if job.first], ids=lambda job: job.name)
def test_help_shows_what_people_set_first_and_help_all_every_option(job, capsys):
    own = job.sections[job.name].model_fields
    assert set(job.first) <= set(own)
    short, long = helped(capsys, job.name, "--help"), helped(capsys, job.name, "--help-all")
    assert "--help-all" in short
    for field in own:
        assert f"--{job.name}.{field}" in long
        assert (f"--{job.name}.{field}" in short.split()) == (field in job.first)


def test_the_version(capsys):
    assert helped(capsys, "--version").startswith("zimage-projector 0.")
