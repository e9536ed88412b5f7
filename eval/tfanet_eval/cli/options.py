"""Options that several commands share: their types and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path | None, typer.Option(help="REFER folder; by default the synthetic data.")]
Dataset = Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog.")]
SplitBy = Annotated[str | None, typer.Option(help="Refs file: unc, umd or google [unc; umd for refcocog].")]
Splits = Annotated[list[str] | None, typer.Option(help="val, testA, testB or test; repeatable [val].")]
Limit = Annotated[int | None, typer.Option(min=1, help="Evaluate only the first N expressions of a split.")]
Batch = Annotated[int, typer.Option(min=1, help="Images per call; latency is measured at this batch size.")]
Trust = Annotated[bool, typer.Option("--trust", help="Open plans that were built on another machine.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write all values to this JSON file.")]
