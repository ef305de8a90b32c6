"""Bad input ends with one clear line and exit code 2, before a model loads and before Ray starts."""

import socket

import pytest
import ray
import transformers

from projector.models.resolve import CACHE_VARIABLE
from projector.options import TrainOptions
from ray_jobs.__main__ import main
from ray_jobs.cli.run_options import BuildOptions
from ray_jobs.cluster import connect as cluster
from ray_jobs.cluster.connect import Cluster
from ray_jobs.cluster.crew import crew_for
from ray_jobs.jobs.train import check_workers
from shards.errors import UsageError


@pytest.fixture(autouse=True)
def nothing_heavy(monkeypatch, environment):
    monkeypatch.setenv(CACHE_VARIABLE, environment[CACHE_VARIABLE])
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("started Ray"))
    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
    )


def refusal(capsys, *words):
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "holds no prompts"),
        ("twice.txt", b"a\nb\nA\n", "line 3: duplicate of line 1"),
        ("bytes.txt", b"\xff\xfe\n", "not UTF-8"),
        ("columns.csv", b"a,b\n1,2\n", "no column named prompt"),
        ("kind.docx", b"x", "unknown kind"),
    ],
)
def test_prompt_files(capsys, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    words = ("build", "--build.output", str(tmp_path / "out"), "--build.prompts", str(tmp_path / name))
    assert message in refusal(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_a_language_beside_prompts_of_ones_own(capsys, tmp_path):
    (tmp_path / "p.txt").write_text("a red fox\n")
    words = ("build", "--build.output", str(tmp_path / "out"), "--build.prompts", str(tmp_path / "p.txt"))
    assert "leave one of the two out" in refusal(capsys, *words, "--build.language", "zh")


def test_a_prompt_file_that_is_not_there(capsys, tmp_path):
    words = ("build", "--build.output", str(tmp_path / "out"), "--build.prompts", str(tmp_path / "none.txt"))
    assert "cannot be read" in refusal(capsys, *words)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("height", "0", "greater than 0"),
        ("height", "-256", "greater than 0"),
        ("width", "250", "multiple of 16"),
        ("steps", "0", "greater than 0"),
        ("val_fraction", "1.5", "less than 1"),
        ("layers", "-99", "allowed are -12 to -1"),
        ("samples", "9000000", "the prompt source holds 1272726"),
    ],
)
def test_numbers(capsys, tmp_path, flag, value, message):
    words = ("build", "--build.output", str(tmp_path / "out"), f"--build.{flag}", value)
    assert message in refusal(capsys, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "section"),
    [
        (("build", "--build.output", "{out}"), "build"),
        (("preflight", "--build.output", "{out}"), "build"),
        (("plan", "--plan.calibrate", "true", "--build.samples", "8"), "build"),
        (("import", "--import.output", "{out}", "--import.kind", "coco", "--import.source", "x"), "import"),
    ],
)
def test_captions_longer_than_the_image_model_has_positions_for(capsys, tmp_path, words, section):
    words = [word.format(out=tmp_path / "out") for word in words]
    refused = refusal(capsys, *words, f"--{section}.max_tokens", "2000")
    assert f"{section}.max_tokens = 2000: the image model has positions for captions of 992 tokens" in refused
    assert not (tmp_path / "out").exists()


def test_a_missing_output(capsys):
    assert "build.output is needed" in refusal(capsys, "build")


def test_an_output_that_holds_something_else(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    assert "thesis.tex" in refusal(capsys, "build", "--build.output", str(tmp_path))
    file = tmp_path / "thesis.tex"
    assert "is a file" in refusal(capsys, "build", "--build.output", str(file))
    assert "unknown scheme 'gs'" in refusal(capsys, "build", "--build.output", "gs://bucket/x")


def test_models_that_are_not_there(capsys, tmp_path):
    words = ("build", "--build.output", str(tmp_path / "out"), "--build.models.vl", "x")
    assert "no such folder" in refusal(capsys, *words, "--build.models.image", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("job", "words", "message"),
    [
        ("train", ("--train.output", "x"), "train.data is needed"),
        ("train", ("--train.data", "x"), "train.output is needed"),
        ("train", ("--train.data", "/nonexistent", "--train.output", "x"), "no dataset there"),
        ("evaluate", (), "evaluate.checkpoint is needed"),
        ("report", ("--report.run", "/nonexistent"), "there or two levels down"),
    ],
)
def test_later_jobs(capsys, job, words, message):
    assert message in refusal(capsys, job, *words)


def test_a_report_on_nothing(capsys, tmp_path):
    assert "no dataset.json, metrics.jsonl or eval.json" in refusal(
        capsys, "report", "--report.run", str(tmp_path)
    )


@pytest.fixture
def dead_end(monkeypatch):
    """An address at which nothing listens, and no patience."""
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.3)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_named_cluster_that_does_not_answer(capsys, tmp_path, monkeypatch, dead_end):
    monkeypatch.setenv("RAY_ADDRESS", dead_end)
    said = refusal(capsys, "build", "--build.output", str(tmp_path))
    assert f"no Ray cluster answers at {dead_end} (from RAY_ADDRESS): Connection refused" in said
    assert "unset RAY_ADDRESS to use a local one" in said


def test_a_recorded_cluster_that_is_gone(capsys, tmp_path, monkeypatch, dead_end):
    record = tmp_path / "ray" / "ray_current_cluster"
    record.parent.mkdir()
    record.write_text(dead_end)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    said = refusal(capsys, "build", "--build.output", str(tmp_path / "out"))
    assert f"no Ray cluster answers at {dead_end} (from {record})" in said
    assert f"`ray start --head`, or remove {record} to use a local one" in said


@pytest.mark.parametrize(
    "address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "head", "head:x", ":1"]
)
def test_an_address_that_is_no_heads(capsys, tmp_path, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    said = refusal(capsys, "build", "--build.output", str(tmp_path))
    assert f"{address} (from RAY_ADDRESS) is not the address of a Ray head; give host:port" in said


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:1"])
def test_a_cluster_that_lets_nobody_in(capsys, tmp_path, monkeypatch, address):
    def refuse(**_):
        raise ConnectionError(f"Failed to connect to\n{address}")

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr(ray, "init", refuse)
    said = refusal(capsys, "build", "--build.output", str(tmp_path))
    assert f"{address} (from RAY_ADDRESS) cannot be joined: Failed to connect to {address}; give" in said


NODES = ("a" * 56, "b" * 56)


def crew(cpus=4, gpus=0, **options):
    made = crew_for(BuildOptions(**options), Cluster(NODES, cpus, gpus))
    return made.actors, made.gpus


def test_the_crew_follows_the_cluster():
    assert crew() == (4, 0.0)
    assert crew(gpus=8) == (8, 1.0)
    assert crew(gpus=8, gpus_per_actor=0.5) == (16, 0.5)
    assert crew(gpus=8, gpus_per_actor=0.0) == (4, 0.0)
    assert crew(actors=3) == (3, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_actor": 1.0}, "the cluster has 0 GPUs"),
        ({"gpus": 2, "actors": 3}, "enough for 2"),
    ],
)
def test_more_than_the_cluster_has(options, message):
    with pytest.raises(UsageError, match=message):
        crew(**options)


def test_more_workers_than_seats():
    with pytest.raises(UsageError, match="the cluster has 4 CPUs, one per worker; use at most 4"):
        check_workers(TrainOptions(workers=5), Cluster(NODES, 4, 0), 100)
    with pytest.raises(UsageError, match="the cluster has 2 GPUs"):
        check_workers(TrainOptions(workers="3-8"), Cluster(NODES, 64, 2), 100)
    check_workers(TrainOptions(workers="2-8"), Cluster(NODES, 4, 2), 100)  # the others may come


def test_more_workers_than_a_batch_can_be_shared_by():
    with pytest.raises(
        UsageError, match=r"at most 32 workers can share batches of 32 pairs; .* train\.batch_size"
    ):
        check_workers(TrainOptions(workers="1-33"), Cluster(NODES, 4, 2), 100)
    with pytest.raises(UsageError, match="at most 3 workers can share batches of 3 pairs"):
        check_workers(TrainOptions(workers=4), Cluster(NODES, 4, 0), 3)
    check_workers(TrainOptions(workers="1-32"), Cluster(NODES, 4, 2), 100)
