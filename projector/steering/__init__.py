"""What a person who uses a projector calls: read a picture, blend it into a prompt."""
