"""A cluster joined as the only one that writes to a root, and what ends a run there early."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from projector.models.resolve import ModelSource
from ray_jobs.cli.run_options import MakingOptions
from ray_jobs.cluster.connect import Cluster, StopRequest, connected
from ray_jobs.cluster.node_checks import check_nodes
from shards.stores.lease import HeldError, Lease, sole_writer
from shards.stores.store import Storage


@dataclass(frozen=True)
class Guard:
    """What may end a run early.

    Attributes:
        stop: SIGTERM or Ctrl-C.
        lease: on a root whose store cannot keep two writers apart; None elsewhere.
    """

    stop: StopRequest
    lease: Lease | None

    def reason_to_stop(self) -> str:
        """Why the run should stop; empty while it should not."""
        if self.stop:
            return "stopped by a signal"
        try:
            if self.lease is not None:
                self.lease.check()
        except HeldError as error:
            return str(error)
        return ""


@contextmanager
def guarded(
    options: MakingOptions,
    storage: Storage,
    shard_bytes: int,
    models: Sequence[ModelSource],
    reads: Sequence[str] = (),
) -> Iterator[tuple[Cluster, Guard]]:
    """Join a cluster whose nodes are fit, as the only one that writes to a root, heeding signals.

    Args:
        options: of the job.
        storage: the root.
        shard_bytes: what a full shard takes in the spool, about.
        models, reads: what every node must find.
    """
    stop = StopRequest()
    with connected() as cluster, stop.heeded(), sole_writer(storage) as lease:
        writes, spool = [storage.root], options.spool
        check_nodes(cluster, writes=writes, reads=reads, models=models, spool=spool, spool_bytes=shard_bytes)
        yield cluster, Guard(stop, lease)
