"""What a person who uses a projector calls: read a picture at the size of the training, and project it."""
