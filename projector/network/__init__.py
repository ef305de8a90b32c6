"""The projector itself: its architectures, its files, and the folder that is published."""
