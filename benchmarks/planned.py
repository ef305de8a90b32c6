"""What the benchmarks of the engine make."""

from shards.format.plan import PlannedShard, make_plan
from shards.prompts.builtin import builtin_prompts


def planned_shard(samples: int) -> PlannedShard:
    """One shard of so many built-in prompts."""
    plan = make_plan(
        builtin_prompts().prompts, seed=0, val_fraction=0, samples_per_shard=samples, segments=(samples,)
    )
    return plan.shards[0]
