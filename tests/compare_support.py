"""What a small comparison is called with."""

SMALL = {"height": 64, "width": 64, "steps": 2, "samples": 2, "alphas": "0,0.5"}


def compare_words(checkpoint, **changes):
    """Words of a small comparison, after `python -m ray_jobs`."""
    words = ["compare", "--compare.checkpoint", str(checkpoint)]
    for name, value in (SMALL | changes).items():
        words += [f"--compare.{name}", str(value)]
    return words
