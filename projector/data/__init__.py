"""From samples to the pairs that a training step takes, and the workers that share them."""
