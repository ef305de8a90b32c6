"""One file for each job, read from top to bottom."""
