"""The time of an evaluation besides its engine, and an estimate for RefCOCO val.

    python benchmarks/evaluation_cost.py --engine model.onnx

`tfanet_eval.evaluate` itself runs on images of COCO's sizes, with polygons and run-length codes. The engine's
time is measured with --engine or given with --engine-ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from options import RESULTS, OutOption, ThreadsOption, check_threads
from refcoco import HEIGHT, WIDTH, write_refcoco
from report import Table, machine, show, write

from tfanet.config import TFANetConfig
from tfanet.config import preset as known_preset
from tfanet.console import deprecated_options, new_app, run
from tfanet.errors import UserError

if TYPE_CHECKING:
    from tfanet_eval.timing import Timing

VAL_IMAGES, VAL_OBJECTS, VAL_EXPRESSIONS = 1500, 3811, 10834
"""Sizes of RefCOCO val (split by UNC)."""
app = new_app("Measure the time of an evaluation besides its engine, and estimate RefCOCO val.")


@dataclass(frozen=True)
class Parts:
    """Milliseconds per expression."""

    engine: float
    """Wall-clock time."""
    data: float
    """CPU time: reading, decoding, resizing, tokens, target masks."""
    metrics: float
    """CPU time: logits to the image's size, pixel counts."""

    @property
    def total(self) -> float:
        return self.engine + self.data + self.metrics

    @property
    def share(self) -> float:
        """Share of data and metrics in the total, 0..1."""
        return (self.data + self.metrics) / self.total

    @property
    def sequential_minutes(self) -> float:
        """RefCOCO val with one part after the other."""
        return val_minutes(self.total)

    @property
    def overlapped_minutes(self) -> float:
        """RefCOCO val with all parts at once, at best: the longest part decides."""
        return val_minutes(max(self.engine, self.data, self.metrics))

    def table_rows(self) -> list[tuple[str, str, str]]:
        return [
            ("engine", f"{self.engine:.2f}", f"{val_minutes(self.engine):.1f}"),
            ("data, of one core", f"{self.data:.2f}", f"{val_minutes(self.data):.1f}"),
            ("metrics, of one core", f"{self.metrics:.2f}", f"{val_minutes(self.metrics):.1f}"),
            ("one after the other", f"{self.total:.2f}", f"{self.sequential_minutes:.1f}"),
            ("in threads, at best", "", f"{self.overlapped_minutes:.1f}"),
        ]


def val_minutes(milliseconds: float) -> float:
    """Minutes for RefCOCO val at so many milliseconds per expression."""
    return VAL_EXPRESSIONS * milliseconds / 60e3


@app.command(cls=deprecated_options({"--pictures": "--images"}))
def evaluation_cost(
    engine: Annotated[Path | None, typer.Option(help="Measure its time: .safetensors or .onnx.")] = None,
    engine_ms: Annotated[
        float | None, typer.Option(min=0.0, help="Or its time per expression, in milliseconds.")
    ] = None,
    preset: Annotated[str, typer.Option(help="With --engine-ms: image size and token length.")] = "base",
    images: Annotated[int, typer.Option(min=1, help="Images of 640 x 480, seven expressions each.")] = 60,
    timed: Annotated[int, typer.Option(min=1, help="Expressions to time the engine on.")] = 10,
    threads: ThreadsOption = None,
    out: OutOption = RESULTS,
) -> None:
    """Measure the parts of an expression's time, estimate RefCOCO val, and write the report to --out."""
    if (engine is None) == (engine_ms is None):
        raise UserError("give either --engine to time it, or --engine-ms with its time")
    threads = check_threads(threads)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_val(root, images)
        if engine is not None:
            name, config, engine_ms = _time_engine(engine, root, timed, threads)
        else:
            name, config = f"{preset}, as given", known_preset(preset)
        timing = without_engine(root, config)
    assert engine_ms is not None
    per_sample = 1e3 / timing.samples
    parts = Parts(engine_ms, per_sample * timing.data_cpu, per_sample * timing.metrics_cpu)
    about = machine(threads) | {
        "engine": name,
        "image size": config.image_size,
        "data": f"{images} images of {WIDTH} x {HEIGHT}, {timing.samples} expressions",
    }
    title = f"One expression at {config.image_size}, and RefCOCO val"
    tables = [Table(title, ("part", "ms", "val, minutes"), parts.table_rows())]
    notes = [f"data and metrics are {parts.share:.1%} of the total"]
    values = {
        "parts_ms": {"engine": parts.engine, "data": parts.data, "metrics": parts.metrics},
        "share": parts.share,
        "val_minutes": parts.sequential_minutes,
    }
    show(tables, notes, write("evaluation_cost", out, about, tables, notes, values))


def write_val(root: Path, images: int) -> None:
    """Split val of a synthetic RefCOCO, with as many objects and expressions per image as the real one.

    Every tenth object has a run-length code.
    """
    objects = _spread(VAL_OBJECTS / VAL_IMAGES, images)
    expressions = iter(_spread(VAL_EXPRESSIONS / VAL_OBJECTS, sum(objects)))
    write_refcoco(root, [[next(expressions) for _ in range(n)] for n in objects], "val", rle_every=10)


def _spread(mean: float, count: int) -> list[int]:
    """`count` whole numbers, each 0 or more, whose running means are as close to `mean` as possible."""
    ends = [round(mean * (i + 1)) for i in range(count)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def without_engine(root: Path, config: TFANetConfig) -> Timing:
    """CPU time of `evaluate` on the images in `root`, with an engine that takes no time."""
    from tfanet.data.preprocess import tokenize
    from tfanet.data.refer import ReferDataset
    from tfanet_eval import evaluate

    tokenize(["warm-up"], config.token_length)  # reads the vocabulary
    engine = _ConstantEngine(config)
    return evaluate(engine, ReferDataset(root), progress="data and metrics").timing  # pyright: ignore[reportArgumentType]


class _ConstantEngine:
    """Returns the same smooth logits for every pair: a disc of a fifth of the image."""

    name = "constant"

    def __init__(self, config: TFANetConfig) -> None:
        self.config = config
        axis = np.linspace(-1, 1, config.image_size, dtype=np.float32)
        self._logits = 8 * (0.25 - axis[:, None] ** 2 - axis[None] ** 2)[None]

    def infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return self._logits


def _time_engine(path: Path, root: Path, count: int, threads: int) -> tuple[str, TFANetConfig, float]:
    """The engine's name, config and median milliseconds per expression."""
    from tfanet.data.refer import ReferDataset
    from tfanet_engines import open_engine
    from tfanet_eval import evaluate

    with open_engine(path, threads=threads) as engine:
        result = evaluate(engine, ReferDataset(root), limit=count, progress=path.name, overlap=False)
        return engine.name, engine.config, result.latency.median


if __name__ == "__main__":
    run(app)
