"""What every benchmark reports: the machine it ran on, tables for the terminal, Markdown and JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tfanet.console import say
from tfanet.errors import UserError
from tfanet.files import write_json, write_text

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("tfanet", "torch", "onnxruntime-gpu", "onnxruntime", "onnx", "numpy")


@dataclass(frozen=True)
class Table:
    """Cells as they are printed; the first `texts` columns are left-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1

    def show(self) -> None:
        """Print the table on stdout; it is not cut where the terminal is narrow."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
        for number, column in enumerate(self.columns):
            table.add_column(Text(column), justify="left" if number < self.texts else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*map(Text, row))
        say(f"\n{self.title}")
        needed = Console(width=1000).measure(table).maximum
        Console(highlight=False, width=max(needed, Console().width)).print(table)

    def markdown(self) -> str:
        """The title as a heading and the table as Markdown."""
        rule = ["---"] * self.texts + ["---:"] * (len(self.columns) - self.texts)
        lines = "".join(f"| {' | '.join(row)} |\n" for row in (self.columns, rule, *self.rows))
        return f"## {self.title}\n\n{lines}"


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> int:
    """The number of threads to compute with, by default one a usable core; `UserError` below 1."""
    if threads is not None and threads < 1:
        raise UserError(f"--threads must be at least 1, not {threads}")
    return threads or usable_cores()


def machine(threads: int) -> dict[str, Any]:
    """Processor, cores, threads, load, memory, versions and date, for the head of a report."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable cores": usable_cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }
    if hasattr(os, "getloadavg"):
        found["load before, 1 min"] = round(os.getloadavg()[0], 2)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        found["memory GiB"] = round(gib, 1)
    return found | {"versions": ", ".join(_versions())}


def write(
    name: str, folder: Path, about: dict[str, Any], tables: Sequence[Table], notes: Sequence[str], data: Any
) -> list[Path]:
    """Write NAME-DATE.md (`about`, `tables`, `notes`) and NAME-DATE.json (`about`, `data`) into `folder`.

    A report of the same day is replaced. Returns both paths.
    """
    stem = f"{name}-{about['date'][:10]}"
    head = "".join(f"- {key}: {value}\n" for key, value in about.items())
    parts = [f"# {name}\n\n{head}", *(table.markdown() for table in tables)]
    parts += ["".join(f"- {note}\n" for note in notes)] if notes else []
    text, figures = folder / f"{stem}.md", folder / f"{stem}.json"
    write_text(text, "\n".join(parts))
    write_json(figures, {"about": about, "results": data})
    return [text, figures]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found
