"""Shared by all command lines: error messages, exit codes, output lines, progress bars."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tfanet.errors import UserError, VerificationError

if TYPE_CHECKING:
    import typer
    from rich.progress import Progress, ProgressColumn

T = TypeVar("T")


def new_app(help_text: str, panels: bool = False) -> typer.Typer:
    """A Typer application with the common settings; `panels` groups the options in its help."""
    import typer

    mode = "rich" if panels else None
    return typer.Typer(help=help_text, no_args_is_help=False, add_completion=False, rich_markup_mode=mode)


def deprecated_options(names: Mapping[str, str], *, group: bool = False) -> Any:
    """A Typer command class whose options keep their former names for one version; with `group`, a group's.

        @app.command(cls=deprecated_options({"--rate": "--lr"}))

    `names` maps each former name to the present one. A former name has the present option's type and bounds,
    is absent from `--help`, and prints one line on stderr when it is used. If both are given, the present
    name counts.
    """
    from typer.core import TyperCommand, TyperGroup

    base: Any = TyperGroup if group else TyperCommand

    class Command(base):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            options = {name: option for option in self.params for name in option.opts}
            self.params += [_former_option(options[new], old, new) for old, new in names.items()]

    return Command


def _former_option(option: Any, old: str, new: str) -> Any:
    """A hidden copy of `option` under its `old` name, which sets the default of the option itself."""

    def take_value(context: Any, former: Any, value: Any) -> None:
        if context.get_parameter_source(former.name).name == "COMMANDLINE":
            note(f"{old} is deprecated; use {new}")
            context.default_map = {**(context.default_map or {}), option.name: value}

    former = copy(option)
    former.name, former.opts, former.secondary_opts = old.lstrip("-").replace("-", "_"), [old], []
    former.hidden, former.expose_value, former.callback = True, False, take_value
    former.is_eager = True  # it runs before `option` looks for its default
    return former


def run(app: Callable[[], None]) -> None:
    """Run a command line; `UserError` and `VerificationError` become one red line and an exit code.

    2 for `UserError`, 1 for `VerificationError`; Typer returns 130 for Ctrl-C. Any other exception is a bug
    and keeps its traceback.
    """
    quiet_libraries()
    try:
        app()
    except UserError as error:
        _fail(f"error: {error}", 2)
    except VerificationError as error:
        _fail(f"verification failed: {error}", 1)


def _fail(message: str, code: int) -> None:
    from rich.console import Console

    line = " ".join(message.split())
    Console(stderr=True, soft_wrap=True, highlight=False).print(line, style="bold red", markup=False)
    sys.exit(code)


def quiet_libraries() -> None:
    """Hide third-party warnings; set TFANET_DEBUG=1 to see them."""
    if os.environ.get("TFANET_DEBUG"):
        return
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def say(message: str = "") -> None:
    """Print one line to stdout, without rich's markup or wrapping."""
    from rich.console import Console

    Console(soft_wrap=True, highlight=False).print(message, markup=False)


def note(message: str) -> None:
    """Print one line to stderr, also during a progress bar, without rich's markup or wrapping."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(message, markup=False)


def bar(*extra: ProgressColumn) -> Progress:
    """A progress bar on stderr with description, count, elapsed and remaining time, and `extra` columns."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, *extra, console=Console(stderr=True))


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Iterate over `items` with a progress bar (`bar`)."""
    with bar() as progress:
        yield from progress.track(items, total=total, description=description)


def peak_memory() -> int:
    """Peak memory of this process in bytes; 0 if the system does not report it (Windows)."""
    try:
        # Preferred on Linux, where getrusage starts at the peak of the parent process.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        status = ""
    if peaks := [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]:
        return 1024 * peaks[0]
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def working(message: str) -> Iterator[None]:
    """Show `message` with a spinner and the elapsed time while the block runs, on stderr."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        progress.add_task(message, total=None)
        yield
