"""Reports of all benchmarks: machine and versions, tables for the terminal, Markdown and JSON, failures."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from options import usable_cores

from tfanet.console import say
from tfanet.errors import UserError, VerificationError
from tfanet.files import write_json, write_text

PACKAGES = ("tfanet", "torch", "onnxruntime-gpu", "onnxruntime", "onnx", "numpy")


@dataclass(frozen=True)
class Table:
    """A table of formatted cells; the first `texts` columns are left-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1

    def show(self) -> None:
        """Print the table on stdout, wider than the terminal if necessary."""
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


def machine(threads: int) -> dict[str, Any]:
    """Date, processor, cores, threads, load, memory and versions, for the head of a report."""
    about: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable cores": usable_cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }
    if hasattr(os, "getloadavg"):
        about["load before, 1 min"] = round(os.getloadavg()[0], 2)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        about["memory GiB"] = round(gib, 1)
    return about | {"versions": ", ".join(_versions())}


def about_gpu() -> dict[str, Any]:
    """The current CUDA device, driver and versions, for the head of a report."""
    import torch

    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "GPU": f"{device.name}, compute capability {device.major}.{device.minor}, "
        f"{device.multi_processor_count} multiprocessors, {device.total_memory / 2**30:.0f} GiB, "
        f"{device.L2_cache_size / 2**20:.0f} MiB of second-level cache",
        "driver": _driver_version(),
        "CUDA of PyTorch": torch.version.cuda,
        "GPU packages": ", ".join(
            f"{name} {_installed_version(name) or 'not installed'}" for name in ("triton", "mamba_ssm")
        ),
    }


def write(
    name: str, folder: Path, about: dict[str, Any], tables: Sequence[Table], notes: Sequence[str], data: Any
) -> list[Path]:
    """Write NAME-DATE.md (`about`, `tables`, `notes`) and NAME-DATE.json (`about`, `data`) into `folder`.

    Replaces a report of the same day. Returns both paths.
    """
    stem = f"{name}-{about['date'][:10]}"
    head = "".join(f"- {key}: {value}\n" for key, value in about.items())
    parts = [f"# {name}\n\n{head}", *(table.markdown() for table in tables)]
    parts += ["".join(f"- {note}\n" for note in notes)] if notes else []
    markdown, results = folder / f"{stem}.md", folder / f"{stem}.json"
    write_text(markdown, "\n".join(parts))
    write_json(results, {"about": about, "results": data})
    return [markdown, results]


def show(tables: Sequence[Table], notes: Sequence[str], paths: Sequence[Path]) -> None:
    """Print the tables and notes of a report, and where it was written."""
    for table in tables:
        table.show()
    for line in (*notes, *(f"wrote {path}" for path in paths)):
        say(line)


def number(value: float | None, form: str) -> str:
    """A table cell: the formatted value, or a dash for None."""
    return "–" if value is None else form.format(value)


def cell(text: str) -> str:
    """Text that is safe in a cell of a Markdown table."""
    return text.replace("|", "/")


class NotAvailable(Exception):
    """A candidate that this machine cannot run; the message is a short reason."""


def failures() -> tuple[type[Exception], ...]:
    """Exceptions of a candidate that become a row of the report, out of memory included."""
    kinds = (RuntimeError, ImportError, OSError, TypeError, ValueError)
    kinds += (NotAvailable, UserError, VerificationError)
    if find_spec("triton") is not None:
        kinds += (importlib.import_module("triton.errors").TritonError,)
    return kinds


def reason(error: Exception) -> str:
    """One line for the report: the message of `NotAvailable`, else the type and first line of the message."""
    if isinstance(error, NotAvailable):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _driver_version() -> str:
    """The version that nvidia-smi reports, or `unknown`."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return lines[0] if lines else "unknown"


def _versions() -> list[str]:
    return [f"{package} {found}" for package in PACKAGES if (found := _installed_version(package))]


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
