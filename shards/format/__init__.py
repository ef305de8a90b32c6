"""What the bytes mean: the plan, a sample, a shard with its side files, and the commit that makes it exist."""
