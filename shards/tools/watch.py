"""`python -m shards info ROOT --watch`: a dataset looked at again and again, wherever it is being made."""

import time
from collections.abc import Sequence
from typing import TextIO

from shards.dataset.dataset import GROWTH, Dataset, Seen
from shards.dataset.progress_figures import Standing, progress_parts, spending_parts, standing
from shards.dataset.run_records import RunRecord, read_run, run_entries
from shards.errors import CorruptShardError, NotFoundError
from shards.format.commit import Commit
from shards.format.plan import Segment


class Observer:
    """A dataset looked at more than once: each look is three listings and a request for each record that is new.

    Args:
        dataset: opened dataset.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._seen: Seen | None = None
        self._growth: Sequence[str] = ()
        self._segments: Sequence[Segment] = ()
        self._runs: dict[str, tuple[str, RunRecord]] = {}

    @property
    def commits(self) -> list[Commit]:
        """Those of the last look, by name."""
        return [commit for _, (_, commit) in sorted((self._seen or {}).items())]

    def look(self, now: float, price_gpu_hour: float | None = None) -> Standing:
        """How far the dataset is now; see `standing`."""
        self._seen = self._dataset.look(self._seen)
        growth = [f"{entry.key} {entry.tag}" for entry in self._dataset.storage.list(GROWTH)]
        if growth != self._growth:
            self._growth, self._segments = growth, self._dataset.segments()
        self._look_at_runs()
        runs = [run for _, run in self._runs.values()]
        return standing(self.commits, self._segments, runs, now=now, price_gpu_hour=price_gpu_hour)

    def _look_at_runs(self) -> None:
        entries = run_entries(self._dataset.storage)
        self._runs = {name: known for name, known in self._runs.items() if name in entries}
        for name, entry in entries.items():
            if name not in self._runs or self._runs[name][0] != entry.tag:
                try:
                    self._runs[name] = entry.tag, read_run(self._dataset.storage, name)
                except (NotFoundError, CorruptShardError):  # removed since the listing; nothing depends on it
                    continue


def watch(dataset: Dataset, seconds: float, price_gpu_hour: float | None, stream: TextIO) -> int:
    """Show how far a dataset is until it is complete: redrawn on a terminal, a line each time elsewhere.

    Args:
        dataset: opened dataset.
        seconds: between looks.
        price_gpu_hour: in any currency.
        stream: where to show it.

    Returns:
        exit code: 0 once the dataset is complete, 130 after Ctrl-C.
    """
    observer = Observer(dataset)
    live, drawn = stream.isatty(), 0
    try:
        while True:
            now = time.time()
            far = observer.look(now, price_gpu_hour)
            parts = [*progress_parts(far, now), *spending_parts(far)]
            if live:
                up = f"\x1b[{drawn}F\x1b[J" if drawn else ""  # back to the first line of the last drawing
                stream.write(up + "".join(f"{line}\n" for line in [dataset.storage.root, *parts]))
                drawn = 1 + len(parts)
            else:
                stream.write(f"{time.strftime('%H:%M:%S', time.localtime(now))} {', '.join(parts)}\n")
            stream.flush()
            if far.complete:
                return 0
            time.sleep(seconds)
    except KeyboardInterrupt:
        return 130
