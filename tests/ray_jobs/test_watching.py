"""What can be seen of a run while it works and afterwards: JSON lines, metrics, the way from a sample to its maker."""

import json
import re
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from ray_jobs.cli.log import start_log, tell
from ray_jobs.cli.progress import Progress
from ray_jobs.progress import run_progress
from ray_jobs.progress.prometheus import EVENTS, GAUGES, SECONDS, SORTED_GAUGES, label
from ray_jobs.progress.run_progress import RunProgress
from ray_jobs.progress.snapshot import Event, Snapshot
from ray_support import ROOT, build_command, with_workers
from shards.__main__ import main as shards_main
from shards.dataset.dataset import Dataset
from shards.dataset.run_records import read_run
from shards.stores.local import open_storage
from shards.tools.info import info

NAMES = {*GAUGES, *SORTED_GAUGES, EVENTS, SECONDS}
SAMPLES = 48  # in shards of four and, towards the end, fewer


@pytest.fixture(scope="module")
def head(head_with_dashboard):
    return head_with_dashboard


def test_the_dashboard_draws_every_metric_and_no_other():
    dashboard = json.loads((ROOT / "cluster" / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    drawn = {
        re.sub(r"_(total|bucket|sum|count)$", "", name)
        for expression in asked
        for name in re.findall(r"ray_(pairs_\w+)", expression)
    }
    assert drawn == NAMES
    panels = [panel["gridPos"] for panel in dashboard["panels"]]
    places = [(p["x"] + x, p["y"] + y) for p in panels for x in range(p["w"]) for y in range(p["h"])]
    assert len(places) == len(set(places)), "panels lie on one another"
    assert max(x for x, _ in places) < 24


def test_lines_for_people_and_lines_of_json(capsys):
    start_log("json")
    tell("note", "a prompt\nwith “all” it may hold", shard="train-000000", worker="host:1")
    tell("begun", shard="train-000001")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["event"], first["text"]) == ("note", "a prompt\nwith “all” it may hold")
    assert (second["event"], second["shard"], "text" in second) == ("begun", "train-000001", False)
    start_log("text")
    tell("note", "for people", shard="train-000000")
    tell("begun", shard="train-000001")
    assert capsys.readouterr().out == "for people\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("s3://bucket/some where/v1.0", "s3://bucket/some where/v1.0"),
        ("/data/图", "/data/%E5%9B%BE"),
        ("50%", "50%25"),
        ("/data/\udcff", "/data/%FF"),  # a name that is not UTF-8
    ],
)
def test_labels_are_ascii(text, value):
    assert label(text) == value


@pytest.fixture
def json_lines():
    start_log("json")
    yield
    start_log("text")


def test_a_run_reports_events_figures_and_its_record(json_lines, tmp_path, monkeypatch, capsys):
    """Device seconds are those of a builder and its share of the readers: 1.5 a second here."""
    job = SimpleNamespace(get_job_id=lambda: "01")
    monkeypatch.setattr(run_progress, "ray", SimpleNamespace(get_runtime_context=lambda: job))
    gauged = []
    gauges = SimpleNamespace(count=lambda events: None, show=gauged.append)
    monkeypatch.setattr(run_progress, "RunGauges", lambda *_: gauges)
    dataset = Dataset.create_or_open(open_storage(str(tmp_path / "data")), {"test": 1}, {})
    dataset.grow(SAMPLES, append=False)
    progress = RunProgress("build", dataset, Progress("build", SAMPLES), "f" * 32, 1.5, 1.0, 3.0)
    now = Snapshot(made=5, failed=1, stopping="", builders=2, lost={"died": 1200.0}, under_way=1200.0)
    progress.show(now, [Event("note", {"time": "then"}, "for people")], final=True)
    note, figures = map(json.loads, capsys.readouterr().out.splitlines())
    assert (note["event"], note["text"], note["time"]) == ("note", "for people", "then")
    assert figures["event"] == "progress"
    assert (figures["planned"], figures["made"], figures["under_way"], figures["builders"]) == (
        SAMPLES,
        0,
        5,
        2,
    )
    assert (figures["lost"], figures["gpu_hours"], figures["cost"]) == ({"died": 1800.0}, 1.0, 3.0)
    (shown,) = gauged
    assert (shown["made"], shown["builders"], shown["lost"]) == (5, 2, {"died": 1800.0})
    assert {figure for figure, *_ in (*GAUGES.values(), *SORTED_GAUGES.values())} <= shown.keys()
    for ended in ("", "complete"):
        progress.record(ended)
        record = read_run(dataset.storage, "f" * 32)
        assert (record.ended, record.builders, record.lost) == (ended, 2, {"died": 1800.0})


def scraped(head):
    """The metrics of the head's node, as Prometheus reads them: from where Ray says; empty while there are none."""
    services = Path(head.environment["RAY_TMPDIR"], "ray", "prom_metrics_service_discovery.json")
    told = []
    for place in [target for service in json.loads(services.read_text()) for target in service["targets"]]:
        try:
            with urlopen(f"http://{place}/metrics", timeout=10) as answer:
                told.append(answer.read().decode())
        except (URLError, TimeoutError):
            continue
    return "\n".join(told)


@pytest.fixture(scope="module")
def watched(head, tmp_path_factory):
    """A build whose worker is killed once: its root, what it printed, and the last metrics while it worked."""
    folder = tmp_path_factory.mktemp("watched")
    output, once = folder / "数据", folder / "once"
    crash = {"SHARDS_CRASH_AT": "mid-shard:3", "SHARDS_CRASH_ONCE": str(once)}
    process = subprocess.Popen(
        build_command(output, samples=SAMPLES, actors=1, log="json", price_gpu_hour=3),
        env=with_workers(head.environment, crash) | {"RAY_metrics_report_interval_ms": "200"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, deadline = "", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        now = scraped(head)
        metrics = now if label(str(output)) in now else metrics
        time.sleep(0.2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert once.exists(), "the crash hook never fired"
    return output, out, metrics


@pytest.fixture
def told(watched):
    """Ray's own words about a dead worker stand between the lines."""
    return [json.loads(line) for line in watched[1].splitlines() if line.startswith("{")]


@pytest.mark.ray
@pytest.mark.slow
def test_each_event_is_a_line_and_the_last_figures_are_the_datasets(watched, told):
    output = watched[0]
    facts = info(Dataset.open(open_storage(str(output))), 3.0)
    events = Counter(line["event"] for line in told)
    assert events["died"] >= 1
    assert events["committed"] + events["there"] == facts["shards"]
    assert events["begun"] == facts["shards"] + events["died"]
    assert events["complete"] == 1
    attempts = {line["attempt"] for line in told if line["event"] == "begun"}
    assert all(
        line["attempt"] in attempts for line in told if line["event"] in ("committed", "died", "there")
    )
    last = [line for line in told if line["event"] == "progress"][-1]
    assert (last["made"], last["planned"], last["left"], last["complete"]) == (SAMPLES, SAMPLES, 0, True)
    assert (last["shards"], last["under_way"]) == (facts["shards"], 0)
    assert last["lost"] == facts["lost_seconds"]
    assert set(last["lost"]) == {"died"}
    assert last["cost"] == facts["cost"] == 0  # on CPUs no GPU-hour is paid for


@pytest.mark.ray
@pytest.mark.slow
def test_metrics_while_it_works(watched):
    output, _, metrics = watched
    of_it = [line for line in metrics.splitlines() if f'dataset="{label(str(output))}"' in line]
    found = {
        re.sub(r"_(total|bucket|sum|count)$", "", name)
        for name in re.findall(r"^ray_(pairs_\w+)\{", "\n".join(of_it), re.MULTILINE)
    }
    assert found >= {"pairs_planned", "pairs_made", "pairs_builders", "pairs_events"}
    assert found <= NAMES
    (planned,) = [line.split()[-1] for line in of_it if line.startswith("ray_pairs_planned{")]
    assert float(planned) == SAMPLES


@pytest.mark.ray
@pytest.mark.slow
def test_a_shard_leads_to_the_logs_of_whoever_made_it_and_of_whoever_died_at_it(watched, told, head, capsys):
    output = watched[0]
    dead = {line["attempt"] for line in told if line["event"] == "died"}
    commits = Dataset.open(open_storage(str(output))).commits()
    again = [commit for commit in commits if commit.earlier]
    assert again
    logs = Path(head.environment["RAY_TMPDIR"], "ray", "session_latest", "logs")
    for commit in again:
        assert {tried.attempt for tried in commit.earlier} <= dead
        tries = [(commit.attempt, commit.made_by), *((t.attempt, t.made_by) for t in commit.earlier)]
        for attempt, maker in tries:
            assert f'"attempt": "{attempt}"' in (logs / f"{maker.log}.out").read_text()
        assert shards_main(["trace", str(output), commit.name]) == 0
        said = capsys.readouterr().out
        assert commit.attempt in said
        assert f"attempt {commit.earlier[0].attempt} died after" in said
        assert commit.made_by.log in said
