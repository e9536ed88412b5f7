"""What an evaluation costs besides its engine, and RefCOCO val: `python benchmarks/evaluation_cost.py`.

Pictures are loaded, sentences tokenized, masks drawn and counted for a data set of COCO's sizes (640 x 480
JPEGs, polygons, run-length codes), by `tfanet_eval.evaluate` itself; the engine is one that is given, or its
time.
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from report import RESULTS, Table, check_threads, machine, write

from tfanet.config import TFANetConfig
from tfanet.config import preset as known_preset
from tfanet.console import new_app, run, say
from tfanet.errors import UserError

if TYPE_CHECKING:
    from tfanet_eval.timing import Timing

VAL = {"pictures": 1500, "refs": 3811, "sentences": 10834}
"""Of RefCOCO val (split by UNC)."""
WIDTH, HEIGHT = 640, 480
CORNERS = 40
QUALITY = 90
WORDS = [
    "the",
    "left",
    "right",
    "upper",
    "lower",
    "big",
    "small",
    "red",
    "blue",
    "man",
    "woman",
    "dog",
    "chair",
    "glass",
    "with",
    "behind",
    "near",
    "of",
    "on",
    "in",
]
app = new_app("Measure what an evaluation costs besides the engine, and project RefCOCO val.")


@dataclass(frozen=True)
class Parts:
    """Milliseconds an expression, and the wall seconds of all of val."""

    engine: float
    """Of wall time."""
    data: float
    """Of one core: reading, decoding, resizing, tokens, truths."""
    metrics: float
    """Of one core: logits to the picture's size, pixel counts."""

    @property
    def share(self) -> float:
        """Data and metrics, 0..1 of the three together: of wall time if nothing ran beside the engine."""
        return (self.data + self.metrics) / (self.engine + self.data + self.metrics)

    def minutes(self, *, beside: bool) -> float:
        """RefCOCO val; with `beside` data and metrics hide behind the engine, as far as it is the longest."""
        each = max(self.engine, self.data, self.metrics) if beside else self.engine + self.data + self.metrics
        return VAL["sentences"] * each / 60e3


@app.command()
def evaluation_cost(
    engine: Annotated[Path | None, typer.Option(help="Its time is measured: .safetensors or .onnx.")] = None,
    engine_ms: Annotated[
        float | None, typer.Option(min=0.0, help="Milliseconds an expression, measured elsewhere, instead.")
    ] = None,
    preset: Annotated[str, typer.Option(help="With --engine-ms: whose size and tokens.")] = "base",
    pictures: Annotated[int, typer.Option(min=1, help="Of 640 x 480, seven expressions each.")] = 60,
    timed: Annotated[int, typer.Option(min=1, help="Expressions to time the engine on.")] = 10,
    threads: Annotated[
        int | None, typer.Option(help="Of the engine; one a usable core if not given.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the report.", show_default="benchmarks/results")
    ] = RESULTS,
) -> None:
    """Print the parts of an expression's time and the projection, and write the report."""
    if (engine is None) == (engine_ms is None):
        raise UserError("give --engine to time it, or --engine-ms with what it takes")
    threads = check_threads(threads)
    with TemporaryDirectory() as folder:
        root = write_pictures(Path(folder), pictures)
        if engine is not None:
            name, config, engine_ms = _timed(engine, root, timed, threads)
        else:
            name, config = f"{preset}, as given", known_preset(preset)
        cost = besides(root, config)
    assert engine_ms is not None
    parts = Parts(engine_ms, 1e3 * cost.data_cpu / cost.samples, 1e3 * cost.metrics_cpu / cost.samples)
    about = machine(threads) | {
        "engine": name,
        "image size": config.image_size,
        "data": f"{pictures} pictures of {WIDTH} x {HEIGHT}, {cost.samples} expressions",
    }
    table = Table(
        f"One expression at {config.image_size}, and RefCOCO val",
        ("part", "ms", "val, minutes"),
        rows_of(parts),
    )
    table.show()
    note = f"data and metrics are {parts.share:.1%} of the three together"
    say(note)
    values = {"parts_ms": {"engine": parts.engine, "data": parts.data, "metrics": parts.metrics},
              "share": parts.share, "val_minutes": parts.minutes(beside=False)}  # fmt: skip
    for path in write("evaluation_cost", out, about, [table], [note], values):
        say(f"wrote {path}")


def rows_of(parts: Parts) -> list[tuple[str, str, str]]:
    """The table's rows: each part, their sum, and what threads beside the engine make of it."""
    rows = [
        ("engine", f"{parts.engine:.2f}", f"{VAL['sentences'] * parts.engine / 60e3:.1f}"),
        ("data, of one core", f"{parts.data:.2f}", f"{VAL['sentences'] * parts.data / 60e3:.1f}"),
        ("metrics, of one core", f"{parts.metrics:.2f}", f"{VAL['sentences'] * parts.metrics / 60e3:.1f}"),
    ]
    total = parts.engine + parts.data + parts.metrics
    rows.append(("one after the other", f"{total:.2f}", f"{parts.minutes(beside=False):.1f}"))
    rows.append(("in threads, at best", "", f"{parts.minutes(beside=True):.1f}"))
    return rows


def besides(root: Path, config: TFANetConfig) -> Timing:
    """What `evaluate` costs over the pictures in `root` with an engine that has its answer ready."""
    from tfanet.data.preprocess import tokenize
    from tfanet.data.refer import ReferDataset
    from tfanet_eval import evaluate

    tokenize(["once"], config.token_length)  # reads the vocabulary, which is not an expression's time
    return evaluate(_Ready(config), ReferDataset(root), progress="data and metrics").timing  # pyright: ignore[reportArgumentType]


class _Ready:
    """As an engine, with the same smooth logits for every pair: a blob of a fifth of the picture."""

    name = "ready"

    def __init__(self, config: TFANetConfig) -> None:
        self.config = config
        axis = np.linspace(-1, 1, config.image_size, dtype=np.float32)
        self._logits = 8 * (0.25 - axis[:, None] ** 2 - axis[None] ** 2)[None]

    def infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return self._logits


def _timed(engine: Path, root: Path, count: int, threads: int) -> tuple[str, TFANetConfig, float]:
    """An engine's name, config and median milliseconds an expression."""
    from tfanet.data.refer import ReferDataset
    from tfanet_engines import open_engine
    from tfanet_eval import evaluate

    with open_engine(engine, threads=threads) as opened:
        found = evaluate(opened, ReferDataset(root), limit=count, progress=engine.name, overlap=False)
        return opened.name, opened.config, found.latency.median


def write_pictures(root: Path, count: int, seed: int = 0) -> Path:
    """A RefCOCO in `root`, split val alone: `count` pictures, with as many references and sentences each as
    RefCOCO val has on average. Every tenth object is a run-length code, the others are polygons.
    """
    from pycocotools import mask

    coco: Any = mask
    rng = np.random.default_rng(seed)
    (root / "train2014").mkdir()
    (root / "refcoco").mkdir()
    images, annotations, refs = [], [], []
    sentences = 0
    for place in range(count):
        name = f"COCO_train2014_{place + 1:012d}.jpg"
        (root / "train2014" / name).write_bytes(_picture(rng))
        images.append({"id": place + 1, "file_name": name, "height": HEIGHT, "width": WIDTH})
        while len(refs) < round((place + 1) * VAL["refs"] / VAL["pictures"]):
            number = len(refs) + 1
            polygon = _polygon(rng)
            segmentation: Any = [polygon]
            if number % 10 == 0:
                runs = coco.merge(coco.frPyObjects([polygon], HEIGHT, WIDTH))
                segmentation = {"size": runs["size"], "counts": runs["counts"].decode()}
            annotations.append(
                {"id": number, "image_id": place + 1, "category_id": 1, "segmentation": segmentation}
            )
            wanted = round(number * VAL["sentences"] / VAL["refs"]) - sentences
            texts = [" ".join(rng.choice(WORDS, 4)) for _ in range(wanted)]
            refs.append({
                "ref_id": number, "ann_id": number, "image_id": place + 1, "category_id": 1, "split": "val",
                "sentences": [{"sent_id": sentences + i, "sent": text} for i, text in enumerate(texts)],
                "sent_ids": [sentences + i for i in range(wanted)], "file_name": name,
            })  # fmt: skip
            sentences += wanted
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    with (root / "refcoco" / "refs(unc).p").open("wb") as file:
        pickle.dump(refs, file, protocol=2)
    return root


def _picture(rng: np.random.Generator) -> bytes:
    """A JPEG of coloured clouds with grain, some 100 KB as COCO's are."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 40, WIDTH // 40, 3), dtype=np.uint8))
    clouds = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.normal(0, 8, (HEIGHT, WIDTH, 1)).astype(np.int16)
    stream = io.BytesIO()
    Image.fromarray(np.clip(clouds + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _polygon(rng: np.random.Generator) -> list[float]:
    """A ragged round outline, flat, within the picture."""
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radii = rng.uniform(60, 140) * rng.uniform(0.8, 1.2, CORNERS)
    x = np.clip(rng.uniform(150, WIDTH - 150) + radii * np.cos(angles), 0, WIDTH)
    y = np.clip(rng.uniform(120, HEIGHT - 120) + radii * np.sin(angles), 0, HEIGHT)
    return np.stack([x, y], axis=1).round(2).reshape(-1).tolist()


if __name__ == "__main__":
    run(app)
