"""How fast one core makes training samples: `python benchmarks/loader_cpu.py`."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from report import RESULTS, Table, machine, write

from tfanet.console import new_app, run, say, track
from tfanet.errors import VerificationError
from tfanet.files import require_writable

WIDTH, HEIGHT = 640, 480
SENTENCES = 3
"""Of each object; RefCOCO has 2.8."""
RIVAL = "LAVT's steps"
app = new_app("Time the loading of training samples on one core, against the steps of LAVT's loader.")


@dataclass(frozen=True)
class Way:
    """A way to make samples and what it took."""

    name: str
    samples: int
    """Of each timed run."""
    seconds: list[float]
    """CPU time of each run: the figures hold on a machine with other work."""

    @property
    def rate(self) -> float:
        """Samples a second of CPU time."""
        return self.samples / median(self.seconds)


@app.command()
def loader_cpu(
    pictures: Annotated[int, typer.Option(min=4, help="Pictures, each with one object.")] = 200,
    size: Annotated[int, typer.Option(min=32, help="Side of the model's square.")] = 480,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs after the first.")] = 5,
    out: Annotated[
        Path, typer.Option(help="Folder of the report.", show_default="benchmarks/results")
    ] = RESULTS,
) -> None:
    """Check that every way gives the same pixels, time it, and write a table to the terminal and --out."""
    require_writable(out / "loader_cpu")
    about = machine(1) | {"repeats": repeats}
    with TemporaryDirectory(prefix="loader-cpu-") as folder:
        root = Path(folder) / "set"
        kilobytes = make_set(root, pictures)
        ways = measure_all(root, Path(folder) / "packed", size, repeats)
    rival = next(way for way in ways if way.name == RIVAL)
    rows = [
        [way.name, f"{1e3 / way.rate:.2f}", f"{way.rate:.0f}", f"{way.rate / rival.rate:.2f}"] for way in ways
    ]
    columns = ["samples", "ms", "a second", f"times as fast as {RIVAL}"]
    table = Table(f"Samples of {size} x {size} by one core", columns, rows)
    notes = [
        f"{pictures} JPEGs of {WIDTH} x {HEIGHT}, {kilobytes:.0f} kB on average, in the file system's cache; "
        f"polygons of about 40 corners in 1 or 2 parts, {SENTENCES} sentences an object",
        "ms: CPU time a sample, median of the timed runs",
        f"{RIVAL} end with FP32 normalised on the CPU; here the model normalises",
    ]
    table.show()
    for note in notes:
        say(note)
    results = [asdict(way) | {"samples a second": way.rate} for way in ways]
    for path in write("loader_cpu", out, about, [table], notes, results):
        say(f"wrote {path}")


def make_set(root: Path, pictures: int) -> float:
    """A RefCOCO of photograph-like JPEGs in `root`; returns their mean size in kB."""
    folder = root / "images/mscoco/images/train2014"
    folder.mkdir(parents=True)
    (root / "refcoco").mkdir()
    rng = np.random.default_rng(0)
    images, annotations, refs, sizes = [], [], [], []
    for number in track(range(1, pictures + 1), "drawing pictures", total=pictures):
        path = folder / f"COCO_train2014_{number:012d}.jpg"
        _picture(rng).save(path, quality=95)
        sizes.append(path.stat().st_size / 1e3)
        images.append({"id": number, "file_name": path.name, "height": HEIGHT, "width": WIDTH})
        polygons = [_polygon(rng) for _ in range(rng.integers(1, 3))]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": polygons})
        sentences = [
            {"sent": f"the thing {word}", "sent_id": number * SENTENCES + word} for word in range(SENTENCES)
        ]
        ids = {"ref_id": number, "ann_id": number, "image_id": number}
        refs.append({**ids, "split": "train", "sentences": sentences})
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "refcoco/instances.json").write_text(json.dumps(content))
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs))
    return mean(sizes)


def _picture(rng: np.random.Generator) -> Image.Image:
    """Patches of four sizes and grain: about as many bytes as a picture of COCO, 160 kB."""
    total = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    for cells, weight in ((4, 110), (16, 60), (64, 30), (160, 18)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8))
        total += weight * (np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) / 255 - 0.25)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def _polygon(rng: np.random.Generator) -> list[float]:
    """A star-shaped outline of 25 to 55 corners."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(25, 56)))
    radius = rng.uniform(30, 150) * rng.uniform(0.7, 1.3, len(angles))
    x = np.clip(rng.uniform(100, WIDTH - 100) + radius * np.cos(angles), 0, WIDTH)
    y = np.clip(rng.uniform(100, HEIGHT - 100) + radius * np.sin(angles), 0, HEIGHT)
    return np.stack([x, y], axis=1).round(2).reshape(-1).tolist()


def measure_all(root: Path, packed_folder: Path, size: int, repeats: int) -> list[Way]:
    """Each way, after all gave the same pixels and masks; `VerificationError` where one did not."""
    import torch

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
    drawn = np.random.default_rng(0).permutation([places[0] for places in plain.references]).tolist()
    for index in drawn[:20]:
        _require_same(plain[index], packed[index], lavt(index), index)
    ways: list[tuple[str, Callable[[int], Any], Sequence[int]]] = [
        (RIVAL, lavt, drawn),
        ("decoded, one sentence an object in random order", plain.__getitem__, drawn),
        ("decoded, all sentences in order", plain.__getitem__, in_order),
        ("packed, one sentence an object in random order", packed.__getitem__, drawn),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, *_ in ways}
    for turn in track(range(repeats + 1), "loading", total=repeats + 1):
        for name, sample, order in ways:  # by turns, so that other work on the machine strikes all of them
            begun = time.process_time()
            for index in order:
                sample(index)
            if turn:
                seconds[name].append(time.process_time() - begun)
    return [Way(name, len(order), seconds[name]) for name, _, order in ways]


def _lavt(source: Any, annotations: Mapping[int, Any], size: int) -> Callable[[int], Any]:
    """LAVT's steps for a sample: Pillow, pycocotools and torchvision, all of them for every sentence."""
    import torch
    from pycocotools import mask
    from torchvision.transforms import functional as vision
    from torchvision.transforms.functional import InterpolationMode

    # The stubs of both know only a part of what they accept.
    coco: Any = mask
    resize: Any = vision.resize

    def sample(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = source[index]
        picture = Image.open(pair.image_path).convert("RGB")
        runs = coco.frPyObjects(annotations[pair.ann_id]["segmentation"], pair.height, pair.width)
        counted = np.sum(coco.decode(runs), axis=2).astype(np.uint8)
        target = np.zeros(counted.shape)
        target[counted >= 1] = 1  # LAVT asks for 1 and loses the overlap of two parts
        small = resize(picture, [size, size])
        drawn = resize(Image.fromarray(target.astype(np.uint8)), [size, size], InterpolationMode.NEAREST)
        image = vision.normalize(vision.to_tensor(small), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return image, torch.as_tensor(np.array(drawn), dtype=torch.int64)

    return sample


def _require_same(plain: Any, packed: Any, lavt: Any, index: int) -> None:
    """Equal to the last bit but for LAVT's normalised FP32, which must give the same 256 values back."""
    import torch

    means, deviations = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = ((lavt[0].permute(1, 2, 0) * deviations + means) * 255).round().to(torch.uint8)
    same = [torch.equal(plain[name], packed[name]) for name in plain]
    same += [torch.equal(plain["image"], image), torch.equal(plain["mask"].long(), lavt[1])]
    if not all(same):
        raise VerificationError(f"sample {index} differs from one way of loading to another")


if __name__ == "__main__":
    run(app)
