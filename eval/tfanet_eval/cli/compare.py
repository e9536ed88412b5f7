"""`tfanet-eval compare A.jsonl B.jsonl`: compare two engines expression by expression."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfanet.console import say

if TYPE_CHECKING:
    from tfanet_eval.analysis import ResultsComparison

_COLUMNS = ("", "mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "ms per image")


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.jsonl", help="A results file of --results.")],
    second: Annotated[Path, typer.Argument(metavar="B.jsonl", help="Another one, on the same data.")],
    changed: Annotated[
        int, typer.Option(min=0, help="How many of the expressions with the largest change to list.")
    ] = 5,
) -> None:
    """Compare two results files on their common expressions, with 95 % intervals."""
    from tfanet.data.refer import data_name
    from tfanet_eval import tables
    from tfanet_eval.analysis import compare_results
    from tfanet_eval.results import read_results

    files = read_results(first), read_results(second)
    comparison = compare_results(*files)
    rows = [
        {"": f"{letter} {file.run['engine']}"} | metrics
        for letter, file, metrics in zip("AB", files, comparison.metrics, strict=True)
    ]
    name = data_name(files[0].run["dataset"], files[0].run["split_by"])
    tables.show(rows, _COLUMNS, f"{len(comparison.changes)} expressions of {name}, shares in percent")
    _print(comparison, changed)


def _print(comparison: ResultsComparison, changed: int) -> None:
    for name, (low, high) in comparison.intervals.items():
        difference = 100 * comparison.difference[name]
        say(f"{name}: B minus A {difference:+.2f}, 95 % interval {100 * low:+.2f} .. {100 * high:+.2f}")
    say(f"B is better on {comparison.better}, worse on {comparison.worse}, the same on {comparison.same}")
    if comparison.only_first or comparison.only_second:
        say(f"left out: {comparison.only_first} only in A, {comparison.only_second} only in B")
    for change, record, _ in comparison.changes[:changed]:
        if change:
            say(f"  {100 * change:+.1f} IoU: {record.split} image {record.image}, {record.text!r}")
