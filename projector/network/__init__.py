"""The projector itself: its architectures, files and published folder, and how its rows meet a prompt's."""
