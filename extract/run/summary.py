"""What a run of an extraction reports."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.store.parts import StoreContents
from data_tools.store.report import report_path


@dataclass
class Summary:
    """What a run did and what its store holds.

    Attributes:
        output: the store.
        images: images of the list.
        processed: images that this run read; the others were in the store or its parts before.
        stored, regions: images and regions in the store, or in the parts of this shard.
        short: images with fewer regions than the minimum.
        parts_missing: after a run of a shard, how many parts are not written yet; None after any other run.
        failures: images that could not be stored, with `id`, `file` and `reason`.
        seconds: by stage, and `total`.
    """

    output: Path
    images: int
    processed: int = 0
    stored: int = 0
    regions: int = 0
    short: int = 0
    parts_missing: int | None = None
    failures: tuple[dict[str, str], ...] = ()
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def count(self, contents: StoreContents, min_boxes: int) -> None:
        """Add the images of a store or part; one with fewer than `min_boxes` regions is short."""
        self.stored += contents.schema.images
        self.regions += contents.schema.regions
        self.short += int((contents.counts < min_boxes).sum())
        self.failures += contents.failures

    def add_seconds(self, seconds: dict[str, float]) -> None:
        """Add seconds by stage."""
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
            lines.append(f"  {self.short} images had fewer proposals than regions were requested")
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
        """Images of this run divided by its whole duration."""
        return self.processed / self.seconds["total"] if self.processed else 0.0
