"""Who builds: how many actors, with how much of a GPU each."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import ray

from ray_jobs.cli.run_options import BuildOptions, CompareOptions, MakingOptions
from ray_jobs.cluster.connect import Cluster
from shards.errors import UsageError

BUILDER_CPUS = 0.01  # builders are placed by GPU; a whole CPU each would leave none for Ray Data's own tasks

MOST_BUILDERS = 1024  # as many as were simulated (`shard_schedule.simulate`); each costs two rows at the end

BUILDERS_PER_READER = 16  # reading a 1024² picture twice is about 1/30 of the arithmetic of making it
CALLS_PER_READER = 64  # of all its builders, most of them waiting for the model or publishing


@dataclass(frozen=True)
class Crew:
    """Who builds.

    Attributes:
        actors: builders at work at once, to begin with.
        gpus: GPUs each one reserves.
        readers: that share the vision-language model's work; 0 where builders do it themselves.
        reader_gpus: GPUs each reader reserves.
        grows: whether GPUs that join the cluster later get builders too.
    """

    actors: int
    gpus: float
    readers: int = 0
    reader_gpus: float = 0.0
    grows: bool = False

    @property
    def most(self) -> int:
        """Builders that there may be at once in the end."""
        return max(self.actors, MOST_BUILDERS) if self.grows else self.actors

    @property
    def devices_each(self) -> float:
        """Devices held for each builder, its share of the readers' included; one is a builder's own."""
        return 1 + self.readers * (self.reader_gpus or 1) / (self.actors * (self.gpus or 1))


def crew_for(options: MakingOptions | CompareOptions, cluster: Cluster, job: str = "build") -> Crew:
    """How many builders, with how many GPUs each.

    Raises:
        UsageError: the cluster has not what was asked for.
    """
    gpus = options.gpus_per_actor if options.gpus_per_actor is not None else (1.0 if cluster.gpus else 0.0)
    if gpus > cluster.gpus:
        raise UsageError(
            f"{job}.gpus_per_actor = {gpus:g}: the cluster has {cluster.gpus:g} GPUs; "
            "lower it (0 runs on CPUs) or add nodes with GPUs"
        )
    most = int(cluster.gpus / gpus) if gpus else max(1, int(cluster.cpus))
    if options.actors and gpus and options.actors > most:
        raise UsageError(
            f"{job}.actors = {options.actors} at {gpus:g} GPUs each: the cluster has {cluster.gpus:g} GPUs, "
            f"enough for {most}; lower {job}.actors or {job}.gpus_per_actor"
        )
    return Crew(options.actors or most, gpus, grows=bool(gpus) and options.actors is None)


def with_readers(crew: Crew, options: BuildOptions, cluster: Cluster) -> Crew:
    """The crew of a staged build: some of the GPUs go to readers.

    Raises:
        UsageError: the cluster has not enough for both.
    """
    gpus = options.gpus_per_reader if options.gpus_per_reader is not None else crew.gpus
    readers = options.reading_actors or ceil(crew.actors / (BUILDERS_PER_READER + 1))
    if not crew.gpus:
        return replace(crew, readers=readers, reader_gpus=gpus)
    most = int((cluster.gpus - readers * gpus + 1e-9) / crew.gpus)
    actors = options.actors or most
    if not 1 <= actors <= most:
        raise UsageError(
            f"build.placement = 'staged': {actors or 1} builders at {crew.gpus:g} GPUs and {readers} readers at "
            f"{gpus:g} need more than the {cluster.gpus:g} GPUs of the cluster; "
            "lower build.actors, build.gpus_per_actor or build.gpus_per_reader, or take build.placement = offload"
        )
    return replace(crew, actors=actors, readers=readers, reader_gpus=gpus)


def start_readers(crew: Crew, made_of: type, spec: object) -> list[Any]:
    """The readers of a crew, as actors that are restarted when they die, each with the spec."""
    actor: Any = ray.remote(made_of)
    return [
        actor.options(
            num_cpus=BUILDER_CPUS,
            num_gpus=crew.reader_gpus,
            max_restarts=-1,
            max_concurrency=CALLS_PER_READER,
        ).remote(spec)
        for _ in range(crew.readers)
    ]
