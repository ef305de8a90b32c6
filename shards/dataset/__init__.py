"""A dataset as a whole: opened, published to, read, and the records that runs leave beside it."""
