"""Each epoch's figures to TensorBoard, MLflow and Weights & Biases, in the way each of them goes on after a crash.

After a crash the last epoch is logged once more, since its first time may have been cut off; every tracker takes the
two for one. MLflow and Weights & Biases take address and credentials from their own environment variables.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from projector.options import Tracker, TrainOptions
from projector.training.event_file import FOLDER, event_file, event_key, hyperparameters, scalars
from shards.errors import NotFoundError, OptionError
from shards.stores.local import open_storage
from shards.stores.store import Storage

RUNS = "tracking.json"  # which run of MLflow or Weights & Biases a training goes on in
SERVER = "MLFLOW_TRACKING_URI"
PROJECT = "z-image-projector"
PLACES = {
    "data",
    "also",
    "output",
    "cache",
}  # options that say where things lie, which is nobody else's business
MODULES: Mapping[Tracker, str] = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
# An epoch's figures under the names that trackers sort into groups.
NAMES: Mapping[str, str] = {
    "train_loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "val_loss": "val/loss",
    "best_val_loss": "val/best_loss",
    "best_epoch": "val/best_epoch",
    "penalty": "ridge/penalty",
    "held_out_error": "ridge/held_out_error",
    "seconds": "speed/seconds",
    "pairs_per_second": "speed/pairs_per_second",
}
Record = Mapping[str, Any]


class Log(Protocol):
    """Where records go."""

    def epoch(self, record: Record) -> None:
        """Take an epoch's record; the same epoch may come twice."""

    def close(self) -> None:
        """No more records come."""


def check_trackers(options: TrainOptions) -> None:
    """Raise UsageError where a tracker of `log` cannot work, before anything is trained."""
    for name in options.log:
        if find_spec(MODULES[name]) is None:
            raise OptionError(
                f"log = {options.log}: {name} is not installed; "
                f"pip install 'z-image-projector[{name}]', or leave it out"
            )
    if "mlflow" in options.log and not os.environ.get(SERVER):
        raise OptionError(
            f"log = {options.log}: mlflow needs {SERVER} in the environment, its server's address "
            "(or sqlite:///… with the whole of mlflow installed)"
        )


def forget(storage: Storage) -> None:
    """Remove what an earlier training in the same output logged, when one begins from the start."""
    for key in [entry.key for entry in storage.list(FOLDER)] + [RUNS]:
        storage.delete(key)


class Tracking:
    """All trackers of a run; one that fails is left out from then on, since a training is worth more than its log."""

    def __init__(self, options: TrainOptions) -> None:
        self._options, self._storage = options, open_storage(options.output)
        self._logs: dict[Tracker, Log] | None = None

    def epoch(self, record: Record) -> None:
        """Log an epoch; the first one opens the trackers, so a run with nothing left to do opens none."""
        if self._logs is None:
            self._logs = {}
            for name in self._options.log:
                with self._forgiving(name):
                    self._logs[name] = LOGS[name](self._options, self._storage)
        for name, log in list(self._logs.items()):
            with self._forgiving(name):
                log.epoch(record)

    def close(self) -> None:
        """Let every tracker end its run."""
        for name, log in list((self._logs or {}).items()):
            with self._forgiving(name):
                log.close()

    @contextmanager
    def _forgiving(self, name: Tracker) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            assert self._logs is not None
            self._logs.pop(name, None)
            # Its message is not repeated: it may hold the server's address with a password in it.
            print(
                f"warning: {name}: {type(error).__name__}; going on without it, check its environment variables",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def tracking(options: TrainOptions) -> Iterator[Tracking]:
    """The trackers of a run, closed at its end; only worker 0 may log to them."""
    with ExitStack() as stack:
        found = Tracking(options)
        stack.callback(found.close)
        yield found


class TensorBoard:
    """One event file an epoch, named after it and put whole, and one of the options; on S3 as well."""

    def __init__(self, options: TrainOptions, storage: Storage) -> None:
        self._storage = storage
        self._put(hyperparameters(settings(options), NAMES["best_val_loss"]), 0)

    def epoch(self, record: Record) -> None:
        """See `Log.epoch`."""
        self._put([scalars(figures(record))], int(record["epoch"]))

    def close(self) -> None:
        """See `Log.close`."""

    def _put(self, summaries: Sequence[Any], step: int) -> None:
        self._storage.put_bytes(event_key(step), event_file(summaries, step))


class MLflow:
    """An MLflow run on the server of MLFLOW_TRACKING_URI, in the experiment of MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, options: TrainOptions, storage: Storage) -> None:
        self._mlflow = import_module("mlflow")
        known = run_id(storage, "mlflow")
        run = self._mlflow.start_run(run_id=known, run_name=None if known else run_name(options))
        self._logged = 0
        if known is None:
            keep_run_id(storage, "mlflow", run.info.run_id)
            self._mlflow.log_params(settings(options))
        else:
            history = self._mlflow.MlflowClient().get_metric_history(known, NAMES["val_loss"])
            self._logged = max((point.step for point in history), default=0)

    def epoch(self, record: Record) -> None:
        """See `Log.epoch`."""
        if record["epoch"] > self._logged:  # MLflow would keep both points
            self._mlflow.log_metrics(figures(record), step=record["epoch"])

    def close(self) -> None:
        """See `Log.close`."""
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run of Weights & Biases; WANDB_PROJECT, WANDB_API_KEY, WANDB_MODE and so on are read by it."""

    def __init__(self, options: TrainOptions, storage: Storage) -> None:
        wandb = import_module("wandb")
        known = run_id(storage, "wandb")
        self._run = wandb.init(
            project=None if "WANDB_PROJECT" in os.environ else PROJECT,
            name=run_name(options),
            config=settings(options),
            id=known,
            resume="allow" if known else None,
        )
        keep_run_id(storage, "wandb", self._run.id)

    def epoch(self, record: Record) -> None:
        """See `Log.epoch`; an earlier step that comes again is dropped by W&B itself."""
        self._run.log(figures(record), step=record["epoch"])

    def close(self) -> None:
        """See `Log.close`."""
        self._run.finish()


LOGS: dict[Tracker, Callable[[TrainOptions, Storage], Log]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def figures(record: Record) -> dict[str, float]:
    """The numbers of an epoch's record by group and name; ridge has no training loss."""
    return {
        NAMES.get(key, f"other/{key}"): float(value)
        for key, value in record.items()
        if key != "epoch" and isinstance(value, int | float)
    }


def settings(options: TrainOptions) -> dict[str, Any]:
    """The options that decide what is learnt, without places."""
    return options.model_dump(mode="json", exclude=PLACES)


def run_name(options: TrainOptions) -> str:
    """The last part of the output's name."""
    return options.output.rstrip("/").rpartition("/")[2]


def run_id(storage: Storage, tracker: Tracker) -> str | None:
    """The run that an earlier attempt logged to; None where there is none."""
    try:
        known = json.loads(storage.get_bytes(RUNS)).get(tracker)
    except (NotFoundError, ValueError, AttributeError):
        return None
    return known if isinstance(known, str) else None


def keep_run_id(storage: Storage, tracker: Tracker, identity: str) -> None:
    """Write down which run is logged to."""
    known = {name: run_id(storage, name) for name in MODULES} | {tracker: identity}
    content = {name: value for name, value in known.items() if value}
    storage.put_bytes(RUNS, (json.dumps(content, indent=1) + "\n").encode())
