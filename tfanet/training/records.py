"""The records of a run: log.csv, curves.png, predictions.png and TensorBoard files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tfanet.errors import UserError
from tfanet.files import atomic_path
from tfanet.visualize import Cell, contact_sheet, save_image

LOG_COLUMNS: tuple[str, ...] = (
    "step", "epoch", "loss", "bce", "dice", "norm", "rate", "images_per_second", "val_loss", "val_miou",
    "val_oiou",
)  # fmt: skip
_CURVES = {
    "loss": ("loss", "val_loss"),
    "IoU on val": ("val_miou", "val_oiou"),
    "learning rate": ("rate",),
}
_MAX_MARKERS = 60
"""Curves of up to so many points have markers. Longer loss curves get a moving average over 1/60 of them."""


class Records:
    """The files in `out`; a resumed run keeps rows up to its step and the validations of `validated` epochs.

    Raises `UserError` if they cannot be written.
    """

    def __init__(self, out: Path, keep_until: int, validated: int) -> None:
        self.out, self.log = out, out / "log.csv"
        rows = _rows_until(self.log, keep_until) if keep_until else []
        # A validation that was logged, but not saved before the run was killed, is run and logged again.
        rows = [row for row in rows if not row["val_loss"] or int(row["epoch"]) <= validated]
        with atomic_path(self.log) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, LOG_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        from torch.utils.tensorboard import SummaryWriter

        with _user_errors(out / "tensorboard"):
            self.board = SummaryWriter(out / "tensorboard", purge_step=keep_until + 1)
            self.file = self.log.open("a", newline="", buffering=1)
        self.writer = csv.DictWriter(self.file, LOG_COLUMNS)

    def write(self, **values: float) -> None:
        """Append a row to log.csv, and write its values for TensorBoard."""
        row = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values.items()}
        with _user_errors(self.log):
            self.writer.writerow(row)
            for name in values.keys() - {"step", "epoch"}:
                group = "validation" if name.startswith("val_") else "training"
                self.board.add_scalar(f"{group}/{name.removeprefix('val_')}", values[name], values["step"])

    def write_images(self, cells: Sequence[Cell], step: int) -> None:
        """Write predictions.png, the same few validation samples each time, and curves.png."""
        sheet = contact_sheet(cells, columns=2, title=f"step {step}")
        save_image(sheet, self.out / "predictions.png")
        curves = draw_curves(_rows_until(self.log, step))
        save_image(curves, self.out / "curves.png")
        import numpy as np

        with _user_errors(self.out / "tensorboard"):
            self.board.add_image("validation/predictions", np.asarray(sheet), step, dataformats="HWC")

    def close(self) -> None:
        with _user_errors(self.out / "tensorboard"):
            self.board.close()
            self.file.close()


def draw_curves(rows: list[dict[str, str]]) -> Image.Image:
    """The curves of log.csv's `rows` over the steps; a long loss is pale, under its moving average."""
    import io

    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    last = 1.02 * max((int(row["step"]) for row in rows), default=1)
    for position, (title, names) in enumerate(_CURVES.items(), 1):
        axes = figure.add_subplot(1, len(_CURVES), position)
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            xs, ys = (np.array([point[i] for point in points]) for i in range(2))
            if title == "loss" and len(points) > _MAX_MARKERS:
                colour = f"C{names.index(name)}"
                axes.plot(xs, ys, color=colour, alpha=0.2, linewidth=0.5)
                window = len(points) // _MAX_MARKERS
                xs, ys = (np.convolve(x, np.full(window, 1 / window), "valid") for x in (xs, ys))
            marker = "o" if len(xs) <= _MAX_MARKERS else None  # a single point has no line
            axes.plot(xs, ys, label=name, linewidth=1, marker=marker, markersize=3)
        axes.set(title=title, xlabel="step", xlim=(0, last))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        is_iou = title.startswith("IoU")
        axes.set_ylim(0, 1 if is_iou else 1.05 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left" if is_iou else "best")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    content.seek(0)
    return Image.open(content).convert("RGB")


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """The complete rows up to `step`; a row truncated by a crash has fewer columns or an invalid step."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        if next(csv.reader(file), []) != list(LOG_COLUMNS):
            return []
        rows: list[dict[str, Any]] = list(csv.DictReader(file, LOG_COLUMNS))
    complete = [row for row in rows if None not in row.values() and row["step"].isdigit()]
    return [row for row in complete if int(row["step"]) <= step]


@contextmanager
def _user_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
