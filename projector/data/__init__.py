"""From samples to the pairs that a training step takes."""
