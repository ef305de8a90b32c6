"""How many samples may fail before the run is stopped, and what most of them failed by."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_jobs.building.messages import FailedSample

GRACE = 20  # samples seen before the failed share counts: one bad sample among the first must not stop a run
# A message that begins with what its sample is called: 'a.jpg': image does not decode
NAMED = re.compile(r"""(['"])(.+?)\1: (.*)""", re.DOTALL)
NUMBERS = re.compile(r"\d+")
OF_THE_PICTURE = ("ImageError", "MissingPictureError")  # of the source: no other run makes it another
MOST_NAMES, LONGEST_NAME = 3, 60  # of samples, for the commonest reason; characters


@dataclass
class _Cause:
    """Failures that say the same of different samples."""

    reason: str
    error_class: str
    count: int = 0
    names: list[str] = field(default_factory=list)


class FailureBudget:
    """Counts the samples of a run.

    Args:
        job: whose options these are.
        max_fraction: the share of samples that may fail.
        max_consecutive: how many may fail one after the other.
    """

    def __init__(self, job: str, max_fraction: float, max_consecutive: int) -> None:
        self._job, self._max_fraction, self._max_consecutive = job, max_fraction, max_consecutive
        self.made = self.failed = self._consecutive = 0
        self._causes: dict[str, _Cause] = {}

    def count(self, made: int, failed: int) -> str:
        """Count finished samples; negative numbers take back those of an attempt that is made anew.

        Returns:
            why the run should stop; empty while it should not.
        """
        self.made, self.failed = self.made + made, self.failed + failed
        self._consecutive = 0 if made > 0 else self._consecutive + max(0, failed)
        tried = self.made + self.failed
        if self._consecutive > self._max_consecutive:
            return (
                f"{self._consecutive} samples failed one after the other, more than "
                f"{self._job}.max_consecutive_failures {self._max_consecutive} allows"
            )
        if tried >= GRACE and self.failed > self._max_fraction * tried:
            return (
                f"{self.failed} of {tried} samples failed, more than {self._job}.max_failed_fraction "
                f"{self._max_fraction:g} allows"
            )
        return ""

    def add_reasons(self, failures: Sequence[FailedSample]) -> None:
        """Remember why samples failed."""
        for caption, failure in failures:
            named = NAMED.match(failure.message)
            name, reason = (named[2], named[3]) if named else (caption, failure.message)
            cause = self._causes.setdefault(NUMBERS.sub("#", reason), _Cause(reason, failure.error_class))
            cause.count += 1
            shown = " ".join(name.split())[:LONGEST_NAME]
            if len(cause.names) < MOST_NAMES and shown not in cause.names:
                cause.names.append(shown)

    def commonest(self) -> str:
        """Why most samples failed, with the first names; empty where none did."""
        if not self._causes:
            return ""
        cause = max(self._causes.values(), key=lambda cause: cause.count)
        return f"{cause.reason} ({', '.join(cause.names)}{', …' if cause.count > len(cause.names) else ''})"

    def mostly_lasting(self) -> bool:
        """Whether most failures are of pictures that will be the same next time."""
        known = sum(cause.count for cause in self._causes.values())
        lasting = sum(cause.count for cause in self._causes.values() if cause.error_class in OF_THE_PICTURE)
        return lasting > known / 2
