"""One way through a build: actors that make planned shards, and a monitor that watches them."""
