"""Pictures with and without a projector, side by side, and their scores."""
