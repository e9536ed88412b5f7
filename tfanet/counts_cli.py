"""`tfanet-count`: parameters and multiply-accumulates, compared with the paper's Table 4 or by part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tfanet.console import new_app, run, say, working

app = new_app("Count a model's parameters and multiply-accumulates.")


@app.command()
def count(
    preset_name: Annotated[str | None, typer.Option("--preset", help="Count tiny or base by part.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Count this .safetensors model by part.")] = None,
) -> None:
    """Compare the counts with the paper's Table 4, or print those of one model by part."""
    from tfanet.errors import UserError

    if preset_name and checkpoint:
        raise UserError("--preset and --checkpoint each name a model; give one of them")
    if preset_name or checkpoint:
        _parts(preset_name, checkpoint)
    else:
        _table_4()


def _table_4() -> None:
    from tfanet.counts import TABLE_4, count_row

    with working("counting the rows of Table 4"):
        counted = [(row, count_row(row)) for row in TABLE_4]
    rows = [
        (
            f"({row.name}) {row.what}",
            *_compared(ours.parameters / 1e6, row.parameters / 1e6),
            *_compared(ours.macs / 1e9, row.macs / 1e9),
            f"{ours.scans / 1e9:.2f}",
        )
        for row, ours in counted
    ]
    headings = ("Table 4", "params M", "paper", "diff", "MACs G", "paper", "diff", "scans G")
    _print(headings, rows, "tfanet-count --preset base")


def _parts(preset_name: str | None, checkpoint: Path | None) -> None:
    from tfanet.checkpoint import load_config
    from tfanet.config import preset
    from tfanet.counts import count_parts, total

    if checkpoint:
        config, next_command = load_config(checkpoint), f"tfanet-eval --engine {checkpoint}"
    else:
        config, next_command = preset(str(preset_name)), f"tfanet-train --preset {preset_name}"
    parts = count_parts(config)
    parts["all"] = total(parts)
    unit, size = ("G", 1e9) if parts["all"].macs >= 1e9 else ("M", 1e6)
    rows = [
        (name, f"{part.parameters / 1e6:.2f}", f"{part.macs / size:.2f}", f"{part.scans / size:.2f}")
        for name, part in parts.items()
    ]
    say(f"alignment {config.alignment}, fusion {config.fusion}, decoder {config.decoder}")
    _print(("part", "params M", f"MACs {unit}", f"scans {unit}"), rows, next_command)


def _compared(ours: float, paper: float) -> tuple[str, str, str]:
    return f"{ours:.2f}", f"{paper:.2f}", f"{ours / paper - 1:+.1%}"


def _print(headings: Sequence[str], rows: Sequence[Sequence[str]], next_command: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tfanet.counts import CONVENTION

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
    for line in CONVENTION:
        say(line)
    say(f"next: {next_command}")


def main() -> None:
    run(app)
