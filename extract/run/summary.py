"""What an extraction is told and what it reports."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.store.report import report_path


@dataclass(frozen=True)
class Options:
    """How a run works; none of it changes what is stored but `dtype` and `boxes_only`."""

    batch_size: int = 8  # images that go through the network together
    workers: int = 2  # processes that decode
    part_size: int = 256  # images of a part file: what a kill can cost
    dtype: str = "float32"  # of the stored features, or float16
    boxes_only: bool = False  # store no features
    fail_on_error: bool = False  # stop at the first image that cannot be read
    shard: tuple[int, int] | None = None  # (i, n), 1 <= i <= n: write every n-th part and do not join


@dataclass
class Summary:
    """What a run did and what its store holds."""

    output: Path
    images: int
    processed: int = 0  # by this run; the others were there
    stored: int = 0
    regions: int = 0
    short: int = 0  # images with fewer regions than the least asked for
    parts_missing: int | None = None  # of a sharded run, whose parts are not joined yet
    failures: tuple[dict[str, str], ...] = ()
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add_seconds(self, seconds: dict[str, float]) -> None:
        """Add what another process spent."""
        for stage, value in seconds.items():
            self.seconds[stage] += value

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            **{name: getattr(self, name) for name in ("images", "processed", "stored", "regions", "short")},
            "output": str(self.output),
            "bytes": self.output.stat().st_size if self.parts_missing is None else 0,
            "parts_missing": self.parts_missing or 0,
            "failures": list(self.failures),
            "images_per_second": self.images_per_second,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }

    def as_text(self) -> str:
        """A few lines for the console."""
        lines = [self._first_line()]
        stages = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items() if name != "total")
        lines.append(
            f"  this run: {self.processed} images in {self.seconds['total']:.1f} s, "
            f"{self.images_per_second:.1f} images/s (seconds: {stages})"
        )
        if self.short:
            lines.append(f"  {self.short} images had fewer proposals than the regions asked for")
        if self.failures:
            first = self.failures[0]
            lines.append(
                f"  {len(self.failures)} images could not be stored, for instance {first['id']}, {first['file']} "
                f"({first['reason']})" + (f"; all are in {report_path(self.output)}" if not self._sharded else "")
            )
        return "\n".join(lines)

    @property
    def _sharded(self) -> bool:
        return self.parts_missing is not None

    def _first_line(self) -> str:
        if not self._sharded:
            return (
                f"{self.output}: {self.stored} of {self.images} images, {self.regions} regions, "
                f"{self.output.stat().st_size / 1e6:.1f} MB"
            )
        if self.parts_missing:
            return f"{self.output}: {self.parts_missing} parts are still to be written by other shards"
        return f"{self.output}: all parts are written; data-tools join --out {self.output} joins them"

    @property
    def images_per_second(self) -> float:
        """Images of this run by its whole duration."""
        return self.processed / self.seconds["total"] if self.processed else 0.0
