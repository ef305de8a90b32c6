"""What a cluster is started from: `cluster.yaml`, `cluster/`, held against what reads them here, Ray and EC2's API."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from packaging.specifiers import SpecifierSet
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from ray_jobs.__main__ import JOBS
from ray_jobs.cli.parse import parse
from ray_jobs.cli.run_options import BuildOptions, LadderOptions
from ray_jobs.planning.size_estimate import bytes_per_sample

ROOT = Path(__file__).parents[2]
LAUNCHED = ("cluster.yaml", "cluster/local.yaml")
FILES = (*LAUNCHED, "cluster/rayjob.yaml", "cluster/Dockerfile", ".dockerignore")
STOP_SECONDS = 30  # in which a job ends at a sample boundary after SIGTERM
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{12,}|hf_[A-Za-z0-9]{16,}|-----BEGIN|"
    r"(?:secret|token|password|key)\w*[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+_-]{20,}",
    re.IGNORECASE,
)


def contents(file):
    return yaml.safe_load((ROOT / file).read_text())


def pinned(package):
    return re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def changed(content, path, value):
    """A copy with one entry set."""
    copied = json.loads(json.dumps(content))  # what an alias repeats in YAML becomes an entry of its own
    *way, last = path
    entry = copied
    for step in way:
        entry = entry[step]
    entry[last] = value
    return copied


@pytest.mark.parametrize("file", LAUNCHED)
def test_the_launcher_takes_the_file(file):
    config = contents(file)
    validate_config(prepare_config(config))
    assert {"provider", "setup_commands", "head_start_ray_commands"} < config.keys()
    for command in config["setup_commands"] + config["head_start_ray_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("cluster.yaml", ["idle_timeout_minute"], 10),
        ("cluster.yaml", ["available_node_types", "spot_h100", "max_worker"], 4),
        ("cluster.yaml", ["available_node_types", "spot_h100", "min_workers"], "1"),
        ("cluster.yaml", ["available_node_types", "spot_h100", "min_workers"], 9),
        ("cluster.yaml", ["head_node_type"], "heads"),
        ("cluster.yaml", ["auth", "ssh_proxy_comand"], "nc %h %p"),
        ("cluster/local.yaml", ["setup_command"], []),
        ("cluster/local.yaml", ["auth", "ssh_users"], "ray"),
    ],
)
def test_the_launcher_refuses_a_slip(file, path, value):
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config(changed(contents(file), path, value)))


def launch_errors(node_config):
    """What EC2's RunInstances would not take; Ray's own schema lets any `node_config` pass."""
    shape = (
        botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    )
    asked = {name: value for name, value in node_config.items() if name != "SubnetIds"}
    asked |= {"SubnetId": node_config["SubnetIds"][0], "MinCount": 1, "MaxCount": 1}  # as Ray's provider does
    return ParamValidator().validate(asked, shape).generate_report()


def test_ec2_knows_every_field_of_every_node():
    types = contents("cluster.yaml")["available_node_types"]
    assert {name: launch_errors(node["node_config"]) for name, node in types.items()} == dict.fromkeys(
        types, ""
    )
    assert "Ebbs" in launch_errors(
        changed(types["head"]["node_config"], ["BlockDeviceMappings", 0, "Ebbs"], {})
    )


def launched(gpus, unavailable=()):
    """Node types that Ray's second autoscaler starts for so many tasks of a GPU each."""
    config = prepare_config(contents("cluster.yaml"))
    for node in config["available_node_types"].values():
        node["min_workers"] = 0
    types = AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs()
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=config["max_workers"],
            resource_requests=ResourceRequestUtil.group_by_count(
                [ResourceRequestUtil.make({"GPU": 1, "CPU": 0.01})] * gpus
            ),
            recoverable_resource_availabilities=dict.fromkeys(unavailable, 0.0),
        )
    )
    return {request.instance_type: request.count for request in reply.to_launch}


def test_spot_comes_first_and_on_demand_stands_in():
    spot = ("spot_h100", "spot_l40s", "spot_l4")
    assert launched(3) == {"spot_h100": 3}
    assert launched(6) == {"spot_h100": 4, "spot_l40s": 2}
    assert launched(2, unavailable=spot[:1]) == {"spot_l40s": 2}
    assert launched(2, unavailable=spot) == {"on_demand": 2}
    types = contents("cluster.yaml")["available_node_types"]
    paid_in_full = {
        name for name, node in types.items() if not node["node_config"].get("InstanceMarketOptions")
    }
    assert paid_in_full == {"head", "on_demand"}
    assert "RAY_enable_autoscaler_v2=1" in contents("cluster.yaml")["head_start_ray_commands"][-1]


def test_nothing_listens_where_the_internet_is():
    aws = contents("cluster.yaml")
    assert aws["provider"]["use_internal_ips"] is True
    assert aws["auth"]["ssh_proxy_use_node_id"] is True
    for file in LAUNCHED:
        assert "--dashboard-host=127.0.0.1" in contents(file)["head_start_ray_commands"][-1]
        for role in ("head", "worker"):
            assert "RAY_AUTH_MODE=token" in contents(file)[f"{role}_start_ray_commands"][-1]
    job = contents("cluster/rayjob.yaml")["spec"]["rayClusterSpec"]
    assert job["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert job["authOptions"]["mode"] == "token"


def test_disks_hold_what_the_plan_says():
    build, pairs = BuildOptions(), LadderOptions().samples[-1]
    packed = bytes_per_sample(build.model_copy(update={"layers": [-8], "text_modes": ["caption"]})) * pairs
    spool = 4 * bytes_per_sample(build) * build.samples_per_shard
    assert (round(spool / 1e9), round(packed / 1e9)) == (6, 81), "the comment in cluster.yaml says so"
    for name, node in contents("cluster.yaml")["available_node_types"].items():
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        needed = 100e9 + (spool + 1.5 * packed if name != "head" else 0)
        assert disk["Ebs"]["VolumeSize"] * 1e9 >= needed, name


def test_versions_are_those_of_the_constraints():
    assert contents("cluster/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray")
    recipe = (ROOT / "cluster" / "Dockerfile").read_text()
    installs = [
        command
        for file in LAUNCHED
        for command in contents(file)["setup_commands"]
        if "pip install" in command
    ]
    installs += re.findall(r"pip install[^\n]*", recipe)
    assert len(installs) == 4
    assert all("constraints.txt" in command for command in installs)
    python = re.search(r"^FROM python:([\d.]+)-", recipe, re.MULTILINE)[1]
    assert python in SpecifierSet(
        re.search('requires-python = "(.+)"', (ROOT / "pyproject.toml").read_text())[1]
    )


@pytest.mark.parametrize("file", FILES)
def test_no_secret_stands_in_a_file(file):
    assert SECRETS.search((ROOT / file).read_text()) is None


@pytest.mark.parametrize(
    "line", ["AWS_ACCESS_KEY_ID: AKIAIOSFODNN7EXAMPLE", "token=" + "a1" * 16, 'secret_key: "' + "Zx/9" * 10]
)
def test_a_secret_would_be_seen(line):
    assert SECRETS.search(line)


def test_what_nodes_run_of_the_checkout_is_there():
    cluster = contents("cluster.yaml")
    commands = " ".join(
        command for name, lines in cluster.items() if name.endswith("_commands") for command in lines
    )
    used = re.findall(r"~/z-image-projector/([\w./-]+)", commands)
    assert "cluster/spot_notice.py" in used
    assert [name for name in used if not (ROOT / name).is_file()] == []


def strict(schema):
    """A Kubernetes schema under which a field that it does not know is an error, as it is to `kubectl apply`."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(entry) for name, entry in schema.items()}
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not open_ended:
        closed["additionalProperties"] = False
    return closed


@pytest.mark.skipif(
    "KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD names no copy of ray.io_rayjobs.yaml"
)
def test_kuberay_knows_every_field():
    """Its schema is another project's file of 1.4 MB; docs/cluster.md says where it is to be had."""
    manifest = contents("cluster/rayjob.yaml")
    versions = yaml.safe_load(Path(os.environ["KUBERAY_CRD"]).read_text())["spec"]["versions"]
    (version,) = [each for each in versions if f"ray.io/{each['name']}" == manifest["apiVersion"]]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    jsonschema.validate(manifest, schema)
    head = ["spec", "rayClusterSpec", "headGroupSpec"]
    for path, value in (
        (["spec", "backoffLimits"], 3),
        ([*head, "template", "spec", "terminationGracePeriodSecond"], 60),
        ([*head, "template", "spec", "restartPolicy"], 1),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"], "4"),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed(manifest, path, value), schema)


def test_the_manifest_runs_a_job_that_parses():
    words = shlex.split(contents("cluster/rayjob.yaml")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "ray_jobs"]
    parse(words[3:], JOBS)


def test_pods_end_within_their_grace():
    cluster = contents("cluster/rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["terminationGracePeriodSeconds"] >= 2 * STOP_SECONDS  # the hook's time counts
        assert str(STOP_SECONDS) in " ".join(container["lifecycle"]["preStop"]["exec"]["command"])
        assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(STOP_SECONDS)} in container["env"]
    for file in LAUNCHED:
        assert f"RAY_JOB_STOP_WAIT_TIME_S={STOP_SECONDS}" in contents(file)["head_start_ray_commands"][-1]
    *shell, script = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"][
        "exec"
    ]["command"]
    subprocess.run([*shell[:1], "-n", "-c", script], check=True)


def test_pods_have_credentials_by_reference_and_no_rights():
    cluster = contents("cluster/rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        for variable in container["env"]:
            named_secret = re.search("TOKEN|SECRET|KEY|PASSWORD", variable["name"])
            assert ("valueFrom" if named_secret else "value") in variable
        assert container["envFrom"] == [{"secretRef": {"name": "pairs-store"}}]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_submitted_folder_leaves_secrets_history_and_data_behind(tmp_path):
    """Judged by Ray's own reading of `.rayignore`; the launchers' lists say the same to rsync."""
    (tmp_path / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    (ignored,) = get_excludes_from_ignore_files(tmp_path, include_gitignore=False)
    left = (
        ".env",
        ".env.local",
        "store.env",
        "keys/head.pem",
        "auth_token",
        "data/pairs/train/pairs-000000.tar",
    )
    left += (".git/config", "models/vl/model.safetensors", "runs/mlp/config.json", ".venv/bin/python")
    taken = ("projector/data/pairs.py", "projector/models/resolve.py", "shards/dataset/read.py", "run.yaml")
    for path in (*left, *taken):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
        inside = [tmp_path / path, *(tmp_path / path).parents]
        assert any(map(ignored, inside[: inside.index(tmp_path)])) == (path in left), path
    lines = (ROOT / ".rayignore").read_text().splitlines()
    patterns = {line.rstrip("/") for line in lines if not line.startswith("#")}
    for file in LAUNCHED:
        assert set(contents(file)["rsync_exclude"]) == patterns


def test_the_image_holds_the_code_alone_and_runs_it_without_rights():
    recipe = (ROOT / "cluster" / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", recipe, re.MULTILINE) for name in line.split()]
    assert sorted(f"!{name}" for name in copied) == sorted(line for line in ignored if line.startswith("!"))
    assert "*" in ignored
    assert all((ROOT / name).exists() for name in copied)
    assert re.findall(r"^USER (\d+)$", recipe, re.MULTILINE)[-1] != "0"
