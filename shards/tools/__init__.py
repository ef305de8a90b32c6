"""The tools on a dataset: look at it, check it, clean it, merge and describe it."""
