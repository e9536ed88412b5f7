"""A data set of red boxes on black, and engines that find them, miss them or ignore the picture."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tfanet.config import PRESETS, TFANetConfig
from tfanet.data.refer import Expression
from tfanet.errors import UserError
from tfanet_eval.results import Record

CONFIG = PRESETS["tiny"]
SIZE = CONFIG.image_size


class Boxes:
    """`count` samples, two a picture; picture k has `k + 1` red rows. The interface of `ReferDataset`."""

    split = "val"

    def __init__(self, count: int, height: int = SIZE, width: int = SIZE) -> None:
        self.count, self.height, self.width = count, height, width
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Expression]:
        return map(self.__getitem__, range(self.count))

    def __getitem__(self, index: int) -> Expression:
        picture = index // 2
        return Expression(
            ref_id=picture, ann_id=picture, image_id=picture, sent_id=index, text=f"box {picture}",
            image_path=Path("none"), height=self.height, width=self.width, category="box",
        )  # fmt: skip

    def image(self, expression: Expression) -> Image.Image:
        self.decoded.append(expression.image_id)
        pixels = np.zeros((self.height, self.width, 3), dtype=np.uint8)
        pixels[self.mask(expression) > 0] = (255, 0, 0)
        return Image.fromarray(pixels)

    def distractors(self, expression: Expression) -> int:
        return 0

    def mask(self, expression: Expression) -> np.ndarray:
        mask = np.zeros((self.height, self.width), dtype=np.uint8)
        mask[: expression.image_id + 1] = 1
        return mask


@dataclass
class FakeEngine:
    """`answer(images, tokens)` gives the logits; calls are counted by their batch."""

    answer: Callable[[np.ndarray, np.ndarray], np.ndarray]
    name: str = "fake"
    config: TFANetConfig = CONFIG
    calls: list[int] = field(default_factory=list)

    def infer(self, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (SIZE, SIZE, 3)
        assert tokens.dtype == np.int64
        assert tokens.shape == (len(images), CONFIG.token_length)
        self.calls.append(len(images))
        return self.answer(images, tokens).astype(np.float32)


def oracle(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Finds red."""
    return images[..., 0] / 127.5 - 1


def nothing(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.full(images.shape[:3], -1.0)


def everything(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.full(images.shape[:3], 1.0)


def record(index: int, *, image: int = 0, intersection: int, union: int) -> Record:
    """One expression's result, as of a run with batch 1."""
    return Record(
        split="val", index=index, image=image, ref=index, sentence=index, text=f"box {image}",
        intersection=intersection, union=union, area=0.1, distractors=0, ms=5.0, call=index, batch=1,
    )  # fmt: skip


def rows(path: str | Path) -> list[dict]:
    """The lines of a results file after the head, without the times, which no two runs share."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()[1:]
    return [{k: v for k, v in json.loads(line).items() if k != "ms"} for line in lines]


def dies(request: object) -> tuple[str, dict]:
    """A measurement whose process ends without a word."""
    os._exit(7)


def refuses(request: object) -> tuple[str, dict]:
    raise UserError("this machine has no such GPU")


def waits_beside(job: tuple[str, Path], heard: Callable[[int], None]) -> None:
    """One of several: `waits` notes its process in the file and would go on for a minute; the others wait for
    that, then end as their name says.
    """
    how, file = job
    if how == "waits":
        file.write_text(str(os.getpid()))
        time.sleep(60)
    while not (file.exists() and file.read_text()):
        time.sleep(0.01)
    heard(3)
    if how == "refuses":
        raise UserError("this machine has no such GPU")
    if how == "dies":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGKILL)
