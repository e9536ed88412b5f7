"""Options of the evaluation commands: types and help texts, so that signatures show names and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

# Shared by several commands
Data = Annotated[Path | None, Option(help="REFER folder; by default the synthetic data.")]
Dataset = Annotated[str, Option(help="refcoco, refcoco+ or refcocog.")]
SplitBy = Annotated[str | None, Option(help="Refs file: unc, umd or google [unc; umd for refcocog].")]
Splits = Annotated[list[str] | None, Option(help="val, testA, testB or test; repeatable [val].")]
Limit = Annotated[int | None, Option(min=1, help="Evaluate only the first N expressions of a split.")]
Batch = Annotated[int, Option(min=1, help="Images per call; latency is measured at this batch size.")]
Trust = Annotated[bool, Option("--trust", help="Open plans that were built on another machine.")]
Json = Annotated[Path | None, Option("--json", help="Write all values to this JSON file.")]

# tfanet-eval
Engine = Annotated[Path | None, Option(help="Engine to evaluate [the bundled tiny checkpoint].")]
Reference = Annotated[
    Path | None, Option(help="Checkpoint to compare with [the bundled one, if the engine has its weights].")
]
ImageSize = Annotated[int | None, Option(help="Run a .safetensors at this size, a multiple of 32 [its own].")]
ShuffleExpressions = Annotated[
    bool, Option("--shuffle-expressions", help="Control: give every image an expression of another one.")
]
ConventionName = Annotated[
    str, Option(help="How masks are compared: original, 480 (as LAVT), remamber, cris, cris-first.")
]
Results = Annotated[Path | None, Option(help="Write a record for every expression here, as JSON Lines.")]
Resume = Annotated[bool, Option("--resume", help="Continue an interrupted --results file.")]
Workers = Annotated[int, Option(min=1, help="CPU processes to divide the expressions among.")]
Breakdown = Annotated[
    bool,
    Option("--breakdown", help="Metrics by expression length, area, distractors, position words and level."),
]
ParityGate = Annotated[
    bool, Option("--gate", help="Print the parity gate; save the worst pairs if a bound is broken.")
]
GateImages = Annotated[Path, Option(help="Folder for the gate's images.")]
Sheet = Annotated[Path | None, Option(help="Write an image of sampled predictions here.")]
Page = Annotated[
    Path | None, Option("--report", help="Write an HTML page of metrics, plots and predictions.")
]
