"""`tfanet-eval compare A.jsonl B.jsonl`: two engines, expression by expression."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfanet.console import say

if TYPE_CHECKING:
    from tfanet_eval.results import Results

_COLUMNS = ("", "mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "ms per image")


def comparison(first: Results, second: Results) -> dict[str, Any]:
    """Figures of both on what they share, the differences (second less first) with their intervals, and the
    pairs, the most changed first."""
    import numpy as np

    from tfanet_eval.metrics import METRICS, SegmentationMetrics, convention_named, resample
    from tfanet_eval.results import paired

    pairing, rules = paired(first, second), convention_named(first.run["convention"])
    sides = [[pair[side] for pair in pairing.pairs] for side in (0, 1)]
    figures = [
        SegmentationMetrics.of(((r.intersection, r.union) for r in side), rules).result()
        | {"ms per image": float(np.median([r.ms for r in side]))}
        for side in sides
    ]
    drawn = [resample(side, rules) for side in sides]
    ious = [np.array([rules.iou(r.intersection, r.union) for r in side]) for side in sides]
    change = ious[1] - ious[0]
    order = np.argsort(-np.abs(change), kind="stable")
    return {
        "figures": figures,
        "difference": {name: figures[1][name] - figures[0][name] for name in METRICS},
        "intervals": {name: drawn[1].difference(drawn[0], name) for name in METRICS},
        "better": int((change > 0).sum()),
        "worse": int((change < 0).sum()),
        "same": int((change == 0).sum()),
        "changed": [(float(change[i]), *pairing.pairs[i]) for i in order if change[i]],
        "only_first": pairing.only_first,
        "only_second": pairing.only_second,
    }


def compare_files(
    first: Annotated[Path, typer.Argument(metavar="A.jsonl", help="A results file of --results.")],
    second: Annotated[Path, typer.Argument(metavar="B.jsonl", help="Another, of the same data.")],
    changed: Annotated[int, typer.Option(min=0, help="How many of the most changed to list.")] = 5,
) -> None:
    """Compare two results files on the expressions that both have, with 95 % intervals."""
    from tfanet.data.refer import data_name
    from tfanet_eval import tables
    from tfanet_eval.metrics import METRICS
    from tfanet_eval.results import read_results

    files = read_results(first), read_results(second)
    found = comparison(*files)
    rows = [
        {"": f"{letter} {file.run['engine']}"} | figures
        for letter, file, figures in zip("AB", files, found["figures"], strict=True)
    ]
    count = found["better"] + found["worse"] + found["same"]
    name = data_name(files[0].run["dataset"], files[0].run["split_by"])
    tables.show(rows, _COLUMNS, f"{count} expressions of {name}, shares in percent")
    for name in METRICS:
        low, high = found["intervals"][name]
        difference = found["difference"][name]
        say(f"{name}: B less A {100 * difference:+.2f}, 95 % interval {100 * low:+.2f} .. {100 * high:+.2f}")
    say(f"B is better on {found['better']}, worse on {found['worse']}, the same on {found['same']}")
    if found["only_first"] or found["only_second"]:
        say(f"left out: {found['only_first']} that only A has, {found['only_second']} that only B has")
    for change, record, _ in found["changed"][:changed]:
        say(f"  {100 * change:+.1f} IoU: {record.split} image {record.image}, {record.text!r}")
