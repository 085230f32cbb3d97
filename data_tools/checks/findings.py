"""What a check of a data set finds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Case = tuple[int | None, str]  # the line, where the file has lines, and what is wrong there


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one place.

    Attributes:
        check: a short name of what was checked.
        file: where it is.
        message: what is wrong, with an example.
        remedy: how to mend it.
        line: of the first case, where the file has lines.
        count: how many cases there are.
        fatal: training fails, or learns from wrong data.
        fixable: `--fix` mends it.
    """

    check: str
    file: Path
    message: str
    remedy: str
    line: int | None = None
    count: int = 1
    fatal: bool = True
    fixable: bool = False

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else str(self.file)
        times = f" ({self.count} cases)" if self.count > 1 else ""
        return f"{'error' if self.fatal else 'warning'}: {place}: {self.message}{times}\n    mend: {self.remedy}"


@dataclass
class Report:
    """All findings, and what was looked at."""

    findings: list[Finding] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    @property
    def will_train(self) -> bool:
        """Whether nothing fatal was found."""
        return not any(finding.fatal for finding in self.findings)

    def first_of(
        self,
        check: str,
        file: Path,
        cases: Sequence[Case],
        remedy: str,
        fatal: bool = True,
        fixable: bool = False,
    ) -> None:
        """Add one finding for cases of (line, message), if there are any: the first case and their count."""
        if cases:
            line, message = cases[0]
            self.findings.append(Finding(check, file, message, remedy, line, len(cases), fatal, fixable))
