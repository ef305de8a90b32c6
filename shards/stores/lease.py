"""One writer at a time, for stores whose create-only puts overwrite."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from shards.errors import CorruptShardError, NotFoundError, StorageError
from shards.stores.store import Storage, read_json_object

LEASE = "_lease.json"
logger = logging.getLogger("shards.stores.lease")


class HeldError(StorageError):
    """Another writer has the root, or took it over."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: `expires` is in seconds since 1970; the rest tells a dead holder of this machine."""

    id: str
    host: str
    machine: str
    pid: int
    started: str
    expires: float

    def is_live(self) -> bool:
        """False when it expired, or when its process was one of this machine and is gone."""
        if self.machine and self.machine == _machine() and _started(self.pid) != self.started:
            return False
        return time.time() < self.expires

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to write under a root, renewed by a thread until it is given up.

    The store gives no atomic operation, so this is what it can promise. Two writers that start one after the other
    never both hold it: the second is refused while the first renews, and takes over when the first has not renewed
    for `duration`, or at once when it was a process of the same machine that is gone. Two that start at the same
    time both write, wait `settle` and read back: the later write stands, the other writer steps back. A writer
    whose write took longer than half of `settle` starts over and waits longer, since another may have read back
    meanwhile.

    What it cannot promise: a store that delays one write for longer than `settle` after answering it, or clocks
    that differ by more than `duration`, can still let two in; and a holder that was suspended for longer than
    `duration` writes on until it asks `check`. Within one renewal both notice, and `check` raises.

    Args:
        storage: where.
        duration: seconds for which a holder that does not renew is believed alive.
        settle: seconds between writing and reading back.
    """

    def __init__(self, storage: Storage, *, duration: float = 60.0, settle: float = 1.0) -> None:
        self._storage = storage
        self._duration, self._settle = duration, settle
        self._id = uuid.uuid4().hex
        self._stop = threading.Event()
        self._lost = ""
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Take the lease; HeldError, naming the holder and the time left, where another has it."""
        while True:
            looked = time.monotonic()
            other = self._read()
            if other is not None and other.id != self._id and other.is_live():
                left = other.expires - time.time()
                raise HeldError(
                    f"{self._storage.root} is being written by {other}, and this store cannot keep two writers apart; "
                    f"wait until it is done, or {left:.0f} s after it died"
                )
            self._write()
            took = time.monotonic() - looked
            time.sleep(self._settle)
            holder = self._read()
            if took <= self._settle / 2 and holder is not None and holder.id == self._id:
                break
            self._settle = max(self._settle, 4 * took)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(StorageError):  # it expires by itself
            holder = self._read()
            if holder is not None and holder.id == self._id:
                self._storage.delete(LEASE)

    def check(self) -> None:
        """Make sure that the lease is still held.

        Raises:
            HeldError: it is not; nothing more may be written.
        """
        if self._lost:
            raise HeldError(f"the lease on {self._storage.root} is lost: {self._lost}; stop, then run again")

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._lost and not self._stop.wait(self._duration / 4):
            try:
                holder = self._read()
                if holder is not None and holder.id != self._id:
                    self._lost = f"{holder} has it"
                    break
                self._write()
                renewed = time.monotonic()
            except StorageError as error:
                if time.monotonic() - renewed > self._duration:
                    self._lost = f"it could not be renewed ({error})"
        if self._lost:
            logger.error("the lease on %s is lost: %s", self._storage.root, self._lost)

    def _read(self) -> Holder | None:
        """The holder on record; None where there is none or the record says nothing."""
        try:
            return Holder(**read_json_object(self._storage, LEASE))
        except (NotFoundError, CorruptShardError, TypeError):
            return None

    def _write(self) -> None:
        pid = os.getpid()
        holder = Holder(
            self._id, socket.gethostname(), _machine(), pid, _started(pid), time.time() + self._duration
        )
        self._storage.put_bytes(LEASE, json.dumps(asdict(holder)).encode())


@contextmanager
def sole_writer(storage: Storage, *, duration: float = 60.0, settle: float = 1.0) -> Iterator[Lease | None]:
    """Hold the lease while writing, where the store needs one.

    Args:
        storage: the root.
        duration, settle: see `Lease`.

    Returns:
        a context; gives None where create-only puts are honoured, else the lease, after a loud warning.

    Raises:
        HeldError: another writer has it.
    """
    if storage.honours_create_only():
        yield None
        return
    logger.warning(
        "%s: this store overwrites objects that must only be created (it ignores If-None-Match). A lease keeps other "
        "writers out as well as can be; start no second build on this root.",
        storage.root,
    )
    with Lease(storage, duration=duration, settle=settle) as lease:
        yield lease


def _machine() -> str:
    """What pids are counted in: this boot and this container; empty where the kernel does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where there is none or the kernel does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
