"""`evaluate`: a projector and every baseline on the held-out pairs."""

from projector.evaluation import evaluate_checkpoint
from projector.options import EvaluateOptions
from ray_jobs.cluster import signals_exit
from shards.errors import UsageError


def evaluate(options: EvaluateOptions) -> int:
    """Measure and write eval.json.

    Args:
        options: data, checkpoint, output.

    Returns:
        exit code 0.
    """
    if not options.checkpoint:
        raise UsageError("evaluate.checkpoint is needed: the folder of a trained projector")
    with signals_exit():
        result = evaluate_checkpoint(options)
    for name, method in sorted(result["methods"].items(), key=lambda item: item[1]["mse_standardized"]):
        print(
            f"{name:>14}: standardised MSE {method['mse_standardized']:.4f}, "
            f"correlation {method['per_dim_correlation']:.3f}",
            flush=True,
        )
    return 0
