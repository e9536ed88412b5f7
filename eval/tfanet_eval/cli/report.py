"""`tfanet-eval report`: a page made of results files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfanet.console import say, working


def require_page(path: Path) -> None:
    """Raise `UserError` unless a page can be written to `path`."""
    from tfanet.errors import UserError
    from tfanet.files import require_writable

    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path} is not the name of a page; it must end in .html")
    require_writable(path)


def report(
    results: Annotated[
        list[Path], typer.Argument(help="Files of tfanet-eval --results; the first is the base.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    engine: Annotated[
        list[Path] | None,
        typer.Option(help="A file that was evaluated, to draw its masks; may be repeated."),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Open a plan that was built elsewhere.")] = False,
    drift: Annotated[Path | None, typer.Option(help="A drawing of tfanet-eval drift to include.")] = None,
) -> None:
    """Write one HTML page: figures with intervals, distributions, best and worst predictions."""
    require_page(out)

    from tfanet_engines.sidecar import model_sha256
    from tfanet_eval.report.page import write_report
    from tfanet_eval.results import read_results

    found = [read_results(file) for file in results]
    with working(f"drawing {out.name}"):
        engines = {model_sha256(file): file for file in engine or []}
        write_report(out, found, engines, drift=drift, trust=trust)
    say(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
