"""Tells Ray that this EC2 spot node is about to be taken back: started on each worker by cluster.yaml.

EC2 says so two minutes ahead, and only where the node asks for it [1]. Ray does not ask, and takes the node for lost
when it is gone. Told before (`ray drain-node`), it starts nothing more here, and a training on a range of workers saves
its state and goes on elsewhere. On a node that is not a spot one the answer stays "not found".

[1] https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import ray

SERVICE = "http://169.254.169.254"
POLL_SECONDS = 5.0  # as often as EC2 advises
PATIENCE = 2.0  # seconds for an answer from within the machine


def answer_of(service: str, path: str) -> str | None:
    """What the metadata service says, in its second version: a token first.

    Args:
        service: where it is.
        path: what is asked, below `latest/meta-data/`.

    Returns:
        the answer; None where there is no such thing.

    Raises:
        OSError: no answer.
    """
    ask = Request(  # noqa: S310 - http to a fixed address of this machine
        f"{service}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    )
    with urlopen(ask, timeout=PATIENCE) as answer:  # noqa: S310
        token = answer.read().decode()
    ask = Request(f"{service}/latest/meta-data/{path}", headers={"X-aws-ec2-metadata-token": token})  # noqa: S310
    try:
        with urlopen(ask, timeout=PATIENCE) as answer:  # noqa: S310
            return str(answer.read().decode())
    except HTTPError as error:
        if error.code == 404:
            return None
        raise


def taken_back_at(service: str) -> datetime | None:
    """When this node is to be taken back, None where there is no notice; ValueError where an answer says no time."""
    notice = answer_of(service, "spot/instance-action")
    try:
        return None if notice is None else datetime.fromisoformat(json.loads(notice)["time"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no time in {notice!r}") from error


def this_node(service: str) -> str:
    """Ray's id of this node, by its private address; ValueError where the cluster has no such node."""
    address = answer_of(service, "local-ipv4")
    ray.init("auto", log_to_driver=False, logging_level="ERROR")
    for node in ray.nodes():
        if node["Alive"] and node["NodeManagerAddress"] == address:
            return str(node["NodeID"])
    raise ValueError(f"Ray knows no node with address {address}")


def drain_words(node: str, end: datetime) -> list[str]:
    """The command that tells Ray, with the seconds from now until a time."""
    left = max(0, int((end - datetime.now(UTC)).total_seconds()))
    words = [str(Path(sys.executable).parent / "ray"), "drain-node", "--node-id", node]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    return [*words, "--deadline-remaining-seconds", str(left)]


def main(words: list[str]) -> int:
    """Ask until there is a notice, then tell Ray; ends with `ray drain-node`'s exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--service", default=SERVICE, help="the instance metadata service")
    parser.add_argument("--poll", type=float, default=POLL_SECONDS, help="seconds between questions")
    options = parser.parse_args(words)
    end, told = None, ""
    while end is None:
        try:
            end = taken_back_at(options.service)
        except (OSError, ValueError) as error:  # it may answer the next time
            if str(error) != told:
                told = str(error)
                print(f"{options.service}: {type(error).__name__}: {error}", flush=True)
        if end is None:
            time.sleep(options.poll)
    print(f"to be taken back at {end.isoformat()}: telling Ray", flush=True)
    return subprocess.run(drain_words(this_node(options.service), end)).returncode  # noqa: S603


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
