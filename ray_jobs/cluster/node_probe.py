"""What one node says of itself: versions, devices, clock, spool, and whether it reaches the store and the models.

Runs on the node it is about, as a Ray task of `ray_jobs.cluster.node_checks`; importing it needs neither ray nor torch.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from projector.models.resolve import ModelSource
from shards.errors import AlreadyExistsError, NotFoundError, StorageError, UsageError
from shards.stores.local import open_storage, writing
from shards.stores.spool import Spool
from shards.stores.store import TEMPORARY, Storage

RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "diffusers",
    "tokenizers",
    "safetensors",
    "pillow",
    "numpy",
    "ray",
)
ROOMS = ("projector", "ray_jobs", "shards")
TO_BE_FETCHED = "to be fetched"  # what is said of a model that a node has not, and the hub has
GLANCE = 1 << 20  # bytes at either end of a model's file that are hashed
VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICES_SECONDS = 180.0  # for torch to be imported from a cold disk and say what it sees
# In a process of its own: one that has no GPU reserved sees none, and one that looked would keep memory on each.
LIST_DEVICES = """
import json, torch
found = range(torch.cuda.device_count())
print(json.dumps([[torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)] for i in found]))
"""


@dataclass(frozen=True)
class Question:
    """What a node is asked.

    Attributes:
        writes: roots that it must be able to write.
        reads: roots that it must see.
        probe: key of an object that the asker has put under each root of `writes`, and what is in it.
        models: that it must have, or be able to fetch.
        spool: folder for shards under construction; None for the node's own default.
        spool_bytes: room needed there; 0 where nothing is built.
        devices: whether its GPUs are asked for.
    """

    writes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    probe: str = ""
    models: tuple[ModelSource, ...] = ()
    spool: str | None = None
    spool_bytes: int = 0
    devices: bool = False


@dataclass(frozen=True)
class Device:
    """A GPU as torch sees it, memory in bytes."""

    name: str
    free: int
    total: int


@dataclass(frozen=True)
class Answer:
    """What a node found.

    Attributes:
        versions: of python, of the packages that compute, and of the project's own code, a hash.
        devices: its GPUs; None where they were not asked for.
        clock_ahead: seconds that its clock is ahead of the store's, the farthest of all stores; None without one.
        models: what each model looks like there, a hash, or `to be fetched`, by id.
        exclusive: whether every store refuses to overwrite where it is asked to.
        spool_free: bytes free where shards are built; None where nothing is.
        faults: what it could not do, in words, by check: store, models, spool, GPUs.
    """

    versions: Mapping[str, str]
    devices: tuple[Device, ...] | None
    clock_ahead: float | None
    models: Mapping[str, str]
    exclusive: bool
    spool_free: int | None
    faults: Mapping[str, str]


def look_around(question: Question) -> Answer:
    """Answer on the machine that this runs on."""
    faults: dict[str, str] = {}
    clocks: list[float] = []
    models: dict[str, str] = {}
    devices: tuple[Device, ...] | None = None
    exclusive, spool_free = True, None
    for root in question.writes:
        with _noted(faults, "store"):
            storage = open_storage(root)
            _read_clock(storage, clocks)
            try_store(storage, question.probe)
            exclusive &= storage.honours_create_only()
    for root in question.reads:
        with _noted(faults, "store"):
            storage = open_storage(root)
            _read_clock(storage, clocks)
            see(storage)
    for model in question.models:
        with _noted(faults, "models"):
            models[model.id] = glance_at(model)
    if question.spool_bytes:
        with _noted(faults, "spool"):
            spool_free = try_spool(question.spool, question.spool_bytes)
    if question.devices:
        with _noted(faults, "GPUs"):
            devices = devices_here()
    clock = max(clocks, key=abs, default=None)
    return Answer(versions_here(), devices, clock, models, exclusive, spool_free, faults)


@contextmanager
def _noted(faults: dict[str, str], check: str) -> Iterator[None]:
    """Write down what a check runs into; the first of each kind is enough."""
    try:
        yield
    except (UsageError, StorageError, OSError) as error:
        faults.setdefault(check, plain(error))


def plain(said: object) -> str:
    """Words on one line, without control characters: a store's own words may be in it."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(said)).split())


def _read_clock(storage: Storage, clocks: list[float]) -> None:
    """Before anything is signed: with a wrong clock all else is refused, and the reason is seen here."""
    ahead = storage.clock_ahead()
    if ahead is not None:
        clocks.append(ahead)


def try_store(storage: Storage, probe: str) -> None:
    """Read what the asker put, then put, get and delete an object of this node's own.

    Args:
        storage: a root that results go to.
        probe: key of the asker's object, and what is in it; empty where the asker could not put one.

    Raises:
        StorageError: any of it does not work, or the asker's object is not there: another store, or a local folder.
    """
    if probe:
        _check_same(storage, probe)
    key = f"{TEMPORARY}node-{uuid.uuid4().hex}"
    storage.put_bytes(key, b"put", create_only=True)
    if storage.get_bytes(key) != b"put":
        raise StorageError(f"{storage.url(key)} does not hold what was put there")
    with suppress(AlreadyExistsError):
        storage.put_bytes(key, b"put again", create_only=True)
        raise StorageError(f"{storage.url(key)} was overwritten by a put that must only create")
    storage.delete(key)
    if storage.stat(key) is not None:
        raise StorageError(f"{storage.url(key)} is still there after it was deleted")


def _check_same(storage: Storage, probe: str) -> None:
    try:
        seen = storage.get_bytes(probe)
    except NotFoundError:
        seen = b""
    if seen != probe.encode():
        remedy = (
            "give all nodes the same endpoint"
            if storage.root.startswith("s3://")
            else "it is a local folder; use a shared file system or s3://bucket/prefix"
        )
        raise StorageError(
            f"{storage.root} is not the same place here as where the job was started: {remedy}"
        )


def see(storage: Storage) -> None:
    """StorageError where nothing lies under a root that is to be read."""
    there = storage.look()
    if not there.objects and not there.folders:
        raise StorageError(f"{storage.root} is empty here; use a shared file system or s3://bucket/prefix")


def glance_at(model: ModelSource) -> str:
    """What a model looks like on this machine, without reading 28 GB.

    Returns:
        a hash over sizes, beginnings and ends of its files, or `to be fetched`.

    Raises:
        UsageError: it is not here, and the hub does not have it or cannot be reached.
    """
    folder = Path(model.path)
    if model.revision and not folder.is_dir():
        cached = model.cached()
        if cached is None:
            _check_hub(model)
            return TO_BE_FETCHED
        return _hash_of(cached, model)
    folder = Path(model.here())
    missing = [name for name in sorted(model.files) if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"model {model.id}: {folder} lacks {missing[0]} here; copy the folder again")
    return _hash_of(folder, model)


def _hash_of(folder: Path, model: ModelSource) -> str:
    """Ends of files, since two models of one architecture have files of the same names, sizes and headers."""
    digest = hashlib.sha256()
    for name in sorted(model.files):
        with (folder / name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{name} {size}\n".encode())
            for start in sorted({0, max(0, size - GLANCE)}):
                file.seek(start)
                digest.update(file.read(GLANCE))
    return digest.hexdigest()[:12]


def _check_hub(model: ModelSource) -> None:
    """UsageError where the hub cannot give what of a model is not here; it is asked, and nothing is fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        for name in sorted(model.files):
            hf_hub_download(model.id, name, revision=model.revision, dry_run=True)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"model {model.id}: not in the hub's cache here, and not to be had from the hub ({type(error).__name__}); "
            "check the node's network and HF_TOKEN, or fetch it there with `hf download`"
        ) from None


def try_spool(spool: str | None, needed: int) -> int:
    """Make a workspace where shards are built; bytes free there, UsageError or StorageError where they do not do."""
    folder = Spool.at(spool)
    folder.check_room(needed)
    with folder.workspace("preflight") as place, writing(place / "probe"):
        (place / "probe").write_bytes(b"written")
    return shutil.disk_usage(folder.folder).free


def devices_here() -> tuple[Device, ...]:
    """The GPUs that torch sees on this machine; StorageError where it cannot say."""
    environment = {name: value for name, value in os.environ.items() if name != VISIBLE}
    if (visible := visible_to_ray()) is not None:
        environment[VISIBLE] = visible
    try:
        told = subprocess.run(  # noqa: S603 - our own words to our own interpreter
            [sys.executable, "-c", LIST_DEVICES],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEVICES_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise StorageError(f"torch did not list the GPUs within {DEVICES_SECONDS:.0f} s") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StorageError(f"torch cannot list the GPUs: {reason}; check driver and torch build") from None
    return tuple(Device(*device) for device in json.loads(told.stdout))


def visible_to_ray() -> str | None:
    """What CUDA_VISIBLE_DEVICES is to this node's raylet, None where it is not set or not to be known.

    Ray hides all GPUs from a worker that reserves none; those that the node was started without stay hidden.
    """
    try:
        entries = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries)
    return found.get(VISIBLE)


def versions_here() -> dict[str, str]:
    """Of python, of the packages that compute, and of the project's own code."""
    return {"python": platform.python_version(), **recorded_packages(), "code": code_hash()}


def recorded_packages() -> dict[str, str]:
    """Versions of the packages that compute."""
    return {package: _version(package) for package in RECORDED_PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def code_hash() -> str:
    """Hash of the project's own Python files: the version number stays while the code changes."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        digest.update(f"{path.relative_to(root)} ".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
