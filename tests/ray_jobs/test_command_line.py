"""Flags over YAML over defaults, and errors that fit on one line."""

import os
import signal
import sys
import time

import pytest
import yaml

from projector.options import ModelPaths
from ray_jobs.__main__ import JOBS, main, with_lasting_paths
from ray_jobs.cli.parse import Job, as_yaml, parse
from ray_jobs.cli.run_options import BuildOptions
from shards.errors import UsageError


def build(*words: str) -> BuildOptions:
    options = parse(["build", *words], JOBS).options["build"]
    assert isinstance(options, BuildOptions)
    return options


def test_defaults_are_those_of_the_options_model():
    assert build() == BuildOptions()


@pytest.mark.parametrize(
    ("words", "layers"),
    [
        (["--build.layers", "-8"], [-8]),
        (["--build.layers", "-8,-6"], [-8, -6]),
        (["--build.layers=-8,-6,-2"], [-8, -6, -2]),
        (["--build.layers", "[-8, -2]"], [-8, -2]),
        (["--build.layers", "-8", "--build.layers", "-6"], [-8, -6]),
    ],
)
def test_negative_layers_need_no_quoting(words, layers):
    assert build(*words).layers == layers


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ((), (1024, 1024)),
        (("--build.models", "mini"), (64, 64)),
        (("--build.models", "mini", "--build.width", "128"), (64, 128)),
    ],
)
def test_the_miniature_models_draw_at_their_own_size(words, size):
    options = build(*words)
    assert (options.height, options.width) == size


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "build: {samples: 7, width: 512, models: {image: a, vl: b}}\ndemo: {output: elsewhere}\n"
    )
    options = build("--config", str(config), "--build.width", "256")
    assert (options.samples, options.width, options.height) == (7, 256, 1024)
    assert options.models == ModelPaths(image="a", vl="b")


def test_printed_configuration_reads_back_to_itself(tmp_path, capsys):
    words = ["--build.layers", "-8,-2", "--build.models.image", "a b", "--build.models.vl", "c"]
    assert main(["build", *words, "--print-config"]) == 0
    config = tmp_path / "run.yaml"
    config.write_text(capsys.readouterr().out)
    assert build("--config", str(config)) == build(*words)


def test_yaml_form_holds_every_option():
    tree = yaml.safe_load(as_yaml({"build": BuildOptions()}))
    assert set(tree["build"]) == set(BuildOptions.model_fields)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["biuld"], ["'biuld'", "did you mean build"]),
        (["build", "--build.sampels", "3"], ["--build.sampels", "did you mean --build.samples"]),
        (["plan", "--plan.samples", "3"], ["--plan.samples", "did you mean --build.samples"]),
        (["build", "stray"], ["'stray'", "--section.field value"]),
        (["build", "--build.samples", "0"], ["build.samples", "'0'", "greater than 0"]),
        (["build", "--build.width", "-16"], ["build.width", "'-16'", "greater than 0"]),
        (["build", "--build.height", "100"], ["build.height", "'100'", "multiple of 16", "96 or 112"]),
        (["build", "--build.models", "large"], ["build.models", "'large'", "tiny"]),
        (["build", "--build.models.image", "a"], ["build.models.vl", "is needed"]),
        (["build", "--build.layers", "3"], ["build.layers", "counts from the end"]),
        (["build", "--build.layers", "-8,-8"], ["build.layers", "twice"]),
        (
            ["build", "--build.text_modes", "captoin"],
            ["build.text_modes", "'captoin'", "'caption' or 'none'"],
        ),
        (["build", "--build.vl_tokens", "pooled:0"], ["build.vl_tokens", "'pooled:0'"]),
        (["build", "--build.samples"], ["--build.samples", "expected one argument"]),
        (["report"], ["report.run", "is needed"]),
        (["build", "--build.output", "bad\udcff"], [r"'bad\udcff'", "not UTF-8"]),
        (["build", "--config", "/nonexistent.yaml"], ["/nonexistent.yaml", "cannot be read"]),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_2(words, parts, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("build: {sampels: 3}", ["build.sampels", "did you mean build.samples"]),
        ("biuld: {samples: 3}", ["'biuld'", "did you mean 'build'".replace("'", "")]),
        ("demo: {outptu: x}", ["demo.outptu", "demo.output"]),
        ("build: 3", ["'build'", "3"]),
        ("- build", ["list"]),
        ("build: {samples: [", ["cannot be read as YAML"]),
        ("build: {samples: many}", ["build.samples", "'many'"]),
    ],
)
def test_yaml_errors_name_the_key_and_the_nearest_one(text, parts, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(UsageError) as caught:
        build("--config", str(config))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_bytes(b"build: {prompts: \xff\xfe}")
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        build("--config", str(config))


def test_a_pipe_as_configuration_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(UsageError, match="is no plain file"):
        build("--config", str(tmp_path / "run.yaml"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("code", [None, 1, 15])
def test_a_signal_is_128_and_its_number_whoever_handles_it(monkeypatch, capsys, number, code):
    """Ray's own handlers, in place while it starts, exit with 15 or 1."""

    def starting(_options):
        if code is not None:
            signal.signal(number, lambda *_: sys.exit(code))
        os.kill(os.getpid(), number)
        time.sleep(5)

    before = signal.getsignal(number)
    monkeypatch.setattr(Job, "load", lambda _: starting)
    assert main(["demo"]) == 128 + number
    assert capsys.readouterr().err == f"stopped by {number.name}\n"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_help(job, capsys):
    with pytest.raises(SystemExit) as caught:
        main([job, "--help"])
    assert caught.value.code == 0
    assert "--config" in capsys.readouterr().out


def test_help_lists_the_jobs(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(job in text for job in JOBS)


def test_relative_places_are_the_same_in_every_process(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = with_lasting_paths(BuildOptions(output="data", prompts="prompts.txt"))
    assert options == BuildOptions(output=str(tmp_path / "data"), prompts="prompts.txt")
    for output in ("", "/absolute", "~/home", "s3://bucket/prefix"):
        assert with_lasting_paths(BuildOptions(output=output)).output == output
    assert capsys.readouterr().out == ""


def test_in_a_submitted_job_relative_places_are_taken_from_home(tmp_path, monkeypatch, capsys):
    unpacked = tmp_path / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert with_lasting_paths(BuildOptions(output="data")).output == str(tmp_path / "home" / "data")
    assert "does not last" in capsys.readouterr().out


def test_plan_shows_the_first_prompts_as_read(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("prompt;category\na red cat;x\n\na dog, small;y\na fox;z\nan owl;z\n")
    assert main(["plan", "--build.prompts", str(path), "--build.samples", "4"]) == 0
    printed = capsys.readouterr().out
    assert "first prompts of mine.csv, as read:\n  'a red cat'\n  'a dog, small'\n  'a fox'\n" in printed
    assert "1 blank prompts skipped, the first in line 3" in printed


def test_tars_and_webdataset_are_one_kind():
    for word in ("tars", "webdataset"):
        assert parse(["import", "--import.kind", word], JOBS).options["import"].kind == "tars"
