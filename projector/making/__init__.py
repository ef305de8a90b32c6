"""From captions and pictures to whole samples, batch by batch."""
