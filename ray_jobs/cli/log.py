"""What a job says on standard output: lines for people, or one JSON object a line.

Standard output, and no file of its own: Ray keeps that of a submitted job (`ray job logs`), Kubernetes that of a pod,
and both hand it on to whoever collects logs. A file would lie on whichever machine the driver ran on, and an object in
a store cannot be appended to.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

logger = logging.getLogger("ray_jobs")


def utc_now() -> str:
    """The time as lines of a log have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class _JsonLines(logging.Formatter):
    """Events as `tell` gives them, and what libraries log as events named after their logger."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": utc_now(), "event": record.name}
        if text := record.getMessage():
            line["text"] = text
        return json.dumps({**line, **getattr(record, "facts", {})}, default=str)


class _Printer(logging.Handler):
    """Prints to whatever standard output is at the time, each line at once."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def start_log(kind: Literal["text", "json"]) -> None:
    """Decide how this process tells what it does.

    Args:
        kind: `text` prints what has words for people; `json` everything.
    """
    handler = _Printer()
    if kind == "json":
        handler.setFormatter(_JsonLines())
        logging.getLogger("shards").handlers = [handler]
    else:
        handler.addFilter(lambda record: bool(record.getMessage()))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def tells_json() -> bool:
    """Whether lines are JSON."""
    return any(isinstance(handler.formatter, _JsonLines) for handler in logger.handlers)


def tell(event: str, text: str = "", **facts: Any) -> None:
    """Say that something happened.

    Args:
        event: what, in a word.
        text: for people; empty where only JSON is to have it.
        facts: what else is to be known of it, as JSON.
    """
    if not logger.handlers:
        start_log("text")
    logger.info("%s", text, extra={"facts": {"event": event, **facts}})


def log_line(event: str, **facts: Any) -> None:
    """A line in a worker's own log, JSON whatever the driver prints."""
    print(json.dumps({"time": utc_now(), "event": event, **facts}), flush=True)
