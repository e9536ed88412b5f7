"""`tfanet-data`: make a synthetic RefCOCO, look at a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tfanet.console import new_app, run, say
from tfanet.data.refer import ReferDataset
from tfanet.data.shapes import DEFAULT_ROOT, default_counts, ensure_shapes, write_shapes
from tfanet.pictures import Cell, contact_sheet, require_picture, save_picture

app = new_app("Make a synthetic RefCOCO data set, or look at one.")


@app.command()
def make(
    out: Annotated[Path, typer.Argument(help="Folder to make.")] = DEFAULT_ROOT,
    dataset: Annotated[
        str, typer.Option(help="refcoco, refcoco+ or refcocog: names its splits.")
    ] = "refcoco",
    levels: Annotated[
        str, typer.Option(help="Language, comma-separated: attributes, positions, relations, all.")
    ] = "attributes,positions",
    train: Annotated[int | None, typer.Option(help="Training pictures (default 6000).")] = None,
    val: Annotated[int | None, typer.Option(help="Pictures in each other split (default 300).")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other pictures.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a set made differently.")] = False,
) -> None:
    """Draw scenes of coloured shapes with sentences that mean exactly one of them."""
    counts = default_counts(dataset)
    for split in counts:
        asked = train if split == "train" else val
        counts[split] = counts[split] if asked is None else asked
    chosen = [level.strip() for level in levels.split(",") if level.strip()]
    root = write_shapes(out, dataset, chosen, counts, seed, force)
    say(f"{root}: {', '.join(f'{count} {split}' for split, count in counts.items())} pictures")
    filled = "val" if counts["val"] else "train"
    say(f"next: tfanet-data show {root} --dataset {dataset} --split {filled}")


@app.command()
def show(
    root: Annotated[Path, typer.Argument(help="Folder of the data set.")] = DEFAULT_ROOT,
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog.")] = "refcoco",
    split: Annotated[str, typer.Option(help="train, val, testA, testB or test.")] = "val",
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture to write.")] = Path("sheet.png"),
    count: Annotated[int, typer.Option("-n", "--count", help="Sentences to show.", min=1, max=200)] = 24,
    seed: Annotated[int, typer.Option(help="Another seed, another choice.", min=0)] = 0,
) -> None:
    """Write a contact sheet: pictures with their sentences and outlined masks."""
    require_picture(output)
    if root == DEFAULT_ROOT:
        ensure_shapes(root)
    pairs = ReferDataset(root, dataset, split)
    picks = np.random.default_rng(seed).permutation(len(pairs))[:count]
    chosen = [pairs[int(pick)] for pick in picks]
    cells = [Cell(pairs.image(pair), pair.sentence, truth=pairs.mask(pair) > 0) for pair in chosen]
    save_picture(contact_sheet(cells, title=f"{dataset} {split}"), output)
    say(f"{output}: {len(chosen)} of {len(pairs)} sentences of {dataset} {split}")


def main() -> None:
    run(app)
