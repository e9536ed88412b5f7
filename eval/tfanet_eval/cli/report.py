"""`tfanet-eval report`: an HTML page from results files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfanet.console import say, working
from tfanet_eval.cli.options import Trust


def report(
    results: Annotated[
        list[Path], typer.Argument(help="Files of tfanet-eval --results; the first is the baseline.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    engine: Annotated[
        list[Path] | None,
        typer.Option(help="An engine that was evaluated, to draw its masks; repeatable."),
    ] = None,
    trust: Trust = False,
    drift: Annotated[Path | None, typer.Option(help="An SVG of tfanet-eval drift to include.")] = None,
) -> None:
    """Write one HTML page: metrics with intervals, distributions, best and worst predictions."""
    from tfanet_eval.output import require_page

    require_page(out)

    from tfanet_engines.sidecar import model_sha256
    from tfanet_eval.report.page import write_report
    from tfanet_eval.results import read_results

    contents = [read_results(file) for file in results]
    with working(f"drawing {out.name}"):
        engines = {model_sha256(file): file for file in engine or []}
        write_report(out, contents, engines, drift=drift, trust=trust)
    say(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
