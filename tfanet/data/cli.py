"""`tfanet-data`: make a synthetic RefCOCO; show, check or pack a data set."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tfanet.console import new_app, run, say
from tfanet.data.refer import ReferDataset, data_name, data_options
from tfanet.data.scene import DEFAULT_LEVELS
from tfanet.data.shapes import DEFAULT_ROOT, default_counts, ensure_shapes, write_shapes
from tfanet.errors import VerificationError
from tfanet.files import require_writable, write_json
from tfanet.visualize import Cell, contact_sheet, require_image_path, save_image

app = new_app("Make a synthetic RefCOCO data set; show, check or pack a data set.")


@app.command()
def make(
    out: Annotated[Path, typer.Argument(help="Folder to make.")] = DEFAULT_ROOT,
    dataset: Annotated[
        str, typer.Option(help="refcoco, refcoco+ or refcocog: determines the splits.")
    ] = "refcoco",
    levels: Annotated[
        str,
        typer.Option(help="Language levels, by commas: shapes, attributes, positions, relations, all."),
    ] = ",".join(DEFAULT_LEVELS),
    train: Annotated[int | None, typer.Option(help="Training images [6000].")] = None,
    val: Annotated[int | None, typer.Option(help="Images in each other split [300].")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the images.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a data set with other parameters.")] = False,
) -> None:
    """Draw scenes of coloured shapes with expressions that fit exactly one of them."""
    counts = default_counts(dataset)
    for split in counts:
        given = train if split == "train" else val
        counts[split] = counts[split] if given is None else given
    chosen = [level.strip() for level in levels.split(",") if level.strip()]
    root = write_shapes(out, dataset, chosen, counts, seed, force)
    say(f"{root}: {', '.join(f'{count} {split}' for split, count in counts.items())} images")
    nonempty = "val" if counts["val"] else "train"
    say(f"next: tfanet-data show {root} --dataset {dataset} --split {nonempty}")


@app.command()
def show(
    root: Annotated[Path, typer.Argument(help="Folder of the data set.")] = DEFAULT_ROOT,
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog.")] = "refcoco",
    split_by: Annotated[
        str | None, typer.Option(help="Refs file: unc, umd or google [unc; umd for refcocog].")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, testA, testB or test.")] = "val",
    output: Annotated[Path, typer.Option("-o", "--output", help="Image file to write.")] = Path("sheet.png"),
    count: Annotated[int, typer.Option("-n", "--count", help="Expressions to show.", min=1, max=200)] = 24,
    seed: Annotated[int, typer.Option(help="Random seed of the choice.", min=0)] = 0,
) -> None:
    """Write a contact sheet: images with their expressions and outlined masks."""
    require_image_path(output)
    if root == DEFAULT_ROOT:
        ensure_shapes(root)
    pairs = ReferDataset(root, dataset, split, split_by)
    name = f"{data_name(dataset, pairs.split_by)} {split}"
    picks = np.random.default_rng(seed).permutation(len(pairs))[:count]
    chosen = [pairs[int(pick)] for pick in picks]
    cells = [Cell(pairs.image(pair), pair.text, target=pairs.mask(pair) > 0) for pair in chosen]
    save_image(contact_sheet(cells, title=name), output)
    say(f"{output}: {len(chosen)} of {len(pairs)} expressions of {name}")


@app.command()
def check(
    root: Annotated[Path, typer.Argument(help="Folder of the data set.")] = DEFAULT_ROOT,
    dataset: Annotated[str | None, typer.Option(help="refcoco, refcoco+ or refcocog [all present].")] = None,
    split_by: Annotated[
        str | None, typer.Option(help="Refs file: unc, umd or google [unc; umd for refcocog].")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Decode every image, not its header only.")
    ] = False,
    token_length: Annotated[
        int | None, typer.Option(help="Tokens per expression, with SOT and EOT [17; 22 for refcocog].", min=3)
    ] = None,
    own: Annotated[
        bool, typer.Option("--own", help="Your own data set: do not compare its counts with published ones.")
    ] = False,
    report: Annotated[Path | None, typer.Option("--json", help="File to write all findings to.")] = None,
) -> None:
    """Find faults before training: missing and damaged files, wrong ids, counts, masks, splits.

    Exit code 1 if there is a problem. Notes, such as truncated expressions, are not problems.
    """
    from dataclasses import asdict

    from tfanet.data import check as checks

    if report:
        require_writable(report)
    if root == DEFAULT_ROOT:
        ensure_shapes(root)
    reports = checks.check(
        root,
        [dataset] if dataset else [],
        split_by,
        token_length=token_length,
        decode=images,
        own=own,
    )
    for one in reports:
        for line in checks.lines(one):
            say(line)
    if report:
        write_json(report, [asdict(one) for one in reports])
        say(f"wrote {report}")
    problems = [f"{one.dataset}: {len(one.problems)}" for one in reports if one.problems]
    if problems:
        raise VerificationError(f"kinds of problems in {root}: {', '.join(problems)}")
    first = reports[0]
    assert first.split_by is not None  # unreadable files are a problem
    say(f"next: tfanet-train --data {root} {shlex.join(data_options(first.dataset, first.split_by))}")


@app.command()
def pack(
    root: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, 0.7 MB per image at 480.")],
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog.")] = "refcoco",
    split_by: Annotated[
        str | None, typer.Option(help="Refs file: unc, umd or google [unc; umd for refcocog].")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Image size of the model, a multiple of 32.")] = 480,
) -> None:
    """Store every image and mask resized, for tfanet-train --cache: no decoding in training."""
    from tfanet.config import require_image_size
    from tfanet.data.packed import pack
    from tfanet.data.refer import ReferFiles

    require_image_size(image_size)
    files = ReferFiles.load(root, dataset, split_by)
    images, masks = pack(files, image_size, out)
    say(f"{out}: {images} images and {masks} masks of {image_size} x {image_size}")
    options = shlex.join(data_options(dataset, files.split_by))
    say(f"next: tfanet-train --data {root} {options} --image-size {image_size} --cache {out}")


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
