"""Training samples per second of one CPU core: `python benchmarks/loader_cpu.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from options import RESULTS, OutOption
from PIL import Image
from refcoco import HEIGHT, WIDTH, mean_kilobytes, write_refcoco
from report import Table, machine, show, write

from tfanet.console import deprecated_options, new_app, run
from tfanet.errors import VerificationError
from tfanet.files import require_writable

EXPRESSIONS = 3
"""Of each object; RefCOCO has 2.8."""
BASELINE = "LAVT's steps"
MEANS, DEVIATIONS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
app = new_app("Time the loading of training samples on one core, and compare with LAVT's loader.")


@dataclass(frozen=True)
class Loader:
    """Measurements of one way to load samples."""

    name: str
    samples: int
    """Of each timed run."""
    seconds: list[float]
    """CPU time of each run, which other work on the machine affects less than wall-clock time."""

    @property
    def samples_per_second(self) -> float:
        """Median, of CPU time."""
        return self.samples / median(self.seconds)


@app.command(cls=deprecated_options({"--pictures": "--images"}))
def loader_cpu(
    images: Annotated[int, typer.Option(min=4, help="Images, each with one object.")] = 200,
    size: Annotated[int, typer.Option(min=32, help="Image size of the model.")] = 480,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs after the first.")] = 5,
    out: OutOption = RESULTS,
) -> None:
    """Check that all loaders return the same pixels, time them, and write the table to --out."""
    require_writable(out / "loader_cpu")
    about = machine(1) | {"repeats": repeats}
    with TemporaryDirectory(prefix="loader-cpu-") as folder:
        root = Path(folder) / "set"
        write_refcoco(root, [[EXPRESSIONS]] * images, "train")
        kilobytes = mean_kilobytes(root)
        loaders = measure_all(root, Path(folder) / "packed", size, repeats)
    baseline = next(loader for loader in loaders if loader.name == BASELINE).samples_per_second
    rows = []
    for loader in loaders:
        speed = loader.samples_per_second
        rows.append([loader.name, f"{1e3 / speed:.2f}", f"{speed:.0f}", f"{speed / baseline:.2f}"])
    columns = ["loader", "ms", "samples/s", f"speedup over {BASELINE}"]
    tables = [Table(f"Samples of {size} x {size} on one core", columns, rows)]
    notes = [
        f"{images} JPEGs of {WIDTH} x {HEIGHT}, {kilobytes:.0f} kB on average, in the file system's cache; "
        f"polygons of about 40 corners in 1 or 2 parts, {EXPRESSIONS} expressions per object",
        "ms: CPU time per sample, median of the timed runs",
        f"{BASELINE} include the normalisation to FP32; our model normalises by itself",
    ]
    results = [asdict(loader) | {"samples a second": loader.samples_per_second} for loader in loaders]
    show(tables, notes, write("loader_cpu", out, about, tables, notes, results))


def measure_all(root: Path, packed_folder: Path, size: int, repeats: int) -> list[Loader]:
    """Every loader. Raises `VerificationError` if their pixels or masks differ."""
    import torch
    from timing import in_turns

    from tfanet.data.packed import PackedImages, pack
    from tfanet.data.refer import ReferDataset, ReferFiles
    from tfanet.data.transforms import TrainingPairs

    torch.set_num_threads(1)
    files = ReferFiles.load(root)
    source = ReferDataset.of(files, "train")
    pack(files, size, packed_folder)
    plain = TrainingPairs(source, size, 17)
    packed = TrainingPairs(source, size, 17, packed=PackedImages(packed_folder, files, size))
    lavt = _lavt(source, files.annotations, size)
    in_order = list(range(len(plain)))
    shuffled = np.random.default_rng(0).permutation([places[0] for places in plain.references]).tolist()
    for index in shuffled[:20]:
        _require_same(plain[index], packed[index], lavt(index), index)
    loaders: dict[str, tuple[Callable[[int], Any], list[int]]] = {
        BASELINE: (lavt, shuffled),
        "decoded, one expression per object in random order": (plain.__getitem__, shuffled),
        "decoded, all expressions in order": (plain.__getitem__, in_order),
        "packed, one expression per object in random order": (packed.__getitem__, shuffled),
    }
    calls = {name: partial(_load, sample, order) for name, (sample, order) in loaders.items()}
    seconds = in_turns(calls, repeats, time.process_time)
    return [Loader(name, len(order), seconds[name]) for name, (_, order) in loaders.items()]


def _load(sample: Callable[[int], Any], order: list[int]) -> None:
    for index in order:
        sample(index)


def _lavt(source: Any, annotations: Mapping[int, Any], size: int) -> Callable[[int], Any]:
    """A sample by LAVT's steps: Pillow, pycocotools and torchvision, all of them for every expression."""
    import torch
    from pycocotools import mask
    from torchvision.transforms import functional as vision
    from torchvision.transforms.functional import InterpolationMode

    # The type stubs of both are incomplete.
    coco: Any = mask
    resize: Any = vision.resize

    def sample(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = source[index]
        image = Image.open(pair.image_path).convert("RGB")
        rles = coco.frPyObjects(annotations[pair.ann_id]["segmentation"], pair.height, pair.width)
        parts = np.sum(coco.decode(rles), axis=2).astype(np.uint8)
        target = np.zeros(parts.shape)
        target[parts >= 1] = 1  # LAVT tests for == 1 and so loses the overlap of two parts
        resized = resize(image, [size, size])
        resized_mask = resize(
            Image.fromarray(target.astype(np.uint8)), [size, size], InterpolationMode.NEAREST
        )
        normalised = vision.normalize(vision.to_tensor(resized), MEANS, DEVIATIONS)
        return normalised, torch.as_tensor(np.array(resized_mask), dtype=torch.int64)

    return sample


def _require_same(plain: Any, packed: Any, lavt: Any, index: int) -> None:
    """Compare bit for bit; LAVT's FP32 values are first converted back to uint8."""
    import torch

    values = lavt[0].permute(1, 2, 0) * torch.tensor(DEVIATIONS) + torch.tensor(MEANS)
    image = (values * 255).round().to(torch.uint8)
    same = [torch.equal(plain[name], packed[name]) for name in plain]
    same += [torch.equal(plain["image"], image), torch.equal(plain["mask"].long(), lavt[1])]
    if not all(same):
        raise VerificationError(f"sample {index} differs between the loaders")


if __name__ == "__main__":
    run(app)
