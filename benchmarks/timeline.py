"""When which stage ran, and a picture of it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

import torch

COLOURS = {"text": "#7a5195", "image": "#2f6fb0", "vl": "#d1790b", "png": "#5a8f3d", "write": "#8a8a8a"}
ROW, LEFT, WIDTH = 26, 70, 900


@dataclass(frozen=True)
class Span:
    """A stage at work, in seconds of `time.perf_counter`."""

    stage: str
    begun: float
    ended: float
    thread: str


class Clock:
    """Spans by stage: `with clock("text"): …`; on a GPU each waits for the device.

    Args:
        device: whose work is waited for.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.spans: list[Span] = []

    @contextmanager
    def __call__(self, stage: str, *, on_device: bool = True) -> Iterator[None]:
        """Record what happens inside; the device is waited for only by what happens there."""
        if on_device:
            self._wait()
        begun = time.perf_counter()
        try:
            yield
        finally:
            if on_device:
                self._wait()
            self.spans.append(Span(stage, begun, time.perf_counter(), threading.current_thread().name))

    def _wait(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()

    def seconds(self, stage: str) -> float:
        """Of all spans of a stage."""
        return sum(span.ended - span.begun for span in self.spans if span.stage == stage)

    def summary(self) -> str:
        """One line."""
        stages = dict.fromkeys(span.stage for span in self.spans)
        return ", ".join(f"{stage} {self.seconds(stage):.2f} s" for stage in stages)


def draw(spans: list[Span]) -> str:
    """An SVG with one row for each stage.

    Args:
        spans: of a shard; `whole` is left out.
    """
    spans = [span for span in spans if span.stage != "whole"]
    start, end = min(span.begun for span in spans), max(span.ended for span in spans)
    scale = WIDTH / (end - start)
    stages = [stage for stage in COLOURS if any(span.stage == stage for span in spans)]
    height = ROW * len(stages) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="100%" height="{height}" fill="#fff"/>',
    ]
    for row, stage in enumerate(stages):
        top = 10 + row * ROW
        total = sum(span.ended - span.begun for span in spans if span.stage == stage)
        parts.append(f'<text x="{LEFT - 8}" y="{top + 15}" text-anchor="end">{escape(stage)}</text>')
        for span in (span for span in spans if span.stage == stage):
            x, width = LEFT + (span.begun - start) * scale, max((span.ended - span.begun) * scale, 0.8)
            parts.append(
                f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{ROW - 6}" fill="{COLOURS[stage]}">'
                f"<title>{escape(stage)}: {span.ended - span.begun:.3f} s of {total:.2f} s</title></rect>"
            )
    axis = 10 + len(stages) * ROW
    for tick in range(6):
        x = LEFT + WIDTH * tick / 5
        parts.append(f'<line x1="{x}" y1="8" x2="{x}" y2="{axis}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x}" y="{axis + 16}" text-anchor="middle">{(end - start) * tick / 5:.1f} s</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
