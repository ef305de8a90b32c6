"""What the frozen image model teaches: velocities on its way to a picture, under edited captions, towards pictures."""
