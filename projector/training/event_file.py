"""TensorBoard's event files, each written whole, and what goes into them; TensorFlow is not needed."""

import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

FOLDER = "tensorboard/"


def event_key(step: int) -> str:
    """Where the event file of a step is stored: what is written twice replaces itself."""
    return f"{FOLDER}events.out.tfevents.{step:06d}"


def event_file(summaries: Sequence[Any], step: int) -> bytes:
    """A whole event file.

    Args:
        summaries: TensorBoard's `Summary` messages.
        step: that all of them belong to.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    now, buffer = time.time(), io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for summary in summaries:
        writer.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())
    return buffer.getvalue()


def scalars(values: Mapping[str, float]) -> Any:
    """Numbers by name, as a `Summary`."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def hyperparameters(options: Mapping[str, Any], judged_by: str) -> list[Any]:
    """A run's options for the page HPARAMS, as `Summary` messages.

    Args:
        options: by name; None is left out, lists and mappings become JSON.
        judged_by: name of the scalar by which runs are compared.
    """
    from torch.utils.tensorboard.summary import hparams

    told = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in options.items()
        if value is not None
    }
    # The value itself is a scalar of each epoch.
    experiment, start, _ = hparams(told, {judged_by: 0.0})  # type: ignore[no-untyped-call]
    return [experiment, start]


def pictures(pngs: Mapping[str, bytes]) -> Any:
    """Encoded PNGs by name for the page IMAGES, as a `Summary`."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(
        value=[
            Summary.Value(tag=tag, image=Summary.Image(encoded_image_string=png)) for tag, png in pngs.items()
        ]
    )
