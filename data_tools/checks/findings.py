"""The findings of the checks of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Case = tuple[int | None, str]  # line number, or None for a file without lines; what is wrong


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one file or folder.

    Attributes:
        check: short name of what was checked.
        file: the file or folder.
        message: what is wrong, for the first case.
        fix: how to fix it.
        line: line number of the first case, or None for a file without lines.
        count: number of cases.
        fatal: whether training fails, or uses wrong data.
        fixable: whether `verify --fix` fixes it.
    """

    check: str
    file: Path
    message: str
    fix: str
    line: int | None = None
    count: int = 1
    fatal: bool = True
    fixable: bool = False

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else str(self.file)
        times = f" ({self.count} cases)" if self.count > 1 else ""
        return f"{'error' if self.fatal else 'warning'}: {place}: {self.message}{times}\n    fix: {self.fix}"


@dataclass
class Report:
    """All findings, and one line per thing that was read."""

    findings: list[Finding] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    @property
    def will_train(self) -> bool:
        """Whether no finding is fatal."""
        return not any(finding.fatal for finding in self.findings)

    def add(
        self,
        check: str,
        file: Path,
        cases: Sequence[Case],
        fix: str,
        fatal: bool = True,
        fixable: bool = False,
    ) -> None:
        """Add one finding with the first of `cases` and their number; nothing if there are none."""
        if cases:
            line, message = cases[0]
            self.findings.append(Finding(check, file, message, fix, line, len(cases), fatal, fixable))
