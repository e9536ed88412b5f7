"""Training options, and the recipes: the paper's for each data set, and that of the bundled model.

The paper (4.1) gives 480 x 480 pixels, 17 or 22 tokens, 50 epochs, AdamW, a learning rate that decays from
epoch 25, and batch 8. It does not give the following, which are our choices:

- Learning rate: 5e-5, half of it for the pretrained encoders, as ReMamber, the most similar model.
- Expressions: one of each reference per epoch, chosen at random, as LAVT and ReMamber train: an epoch of
  RefCOCO is its 42,404 references, 5,300 steps, not its 120,624 expressions.
- Weight decay: LAVT's 1e-2. AdamW shrinks a weight by lr x decay per step: over RefCOCO's 265,000 steps 1e-2
  shrinks an unused weight by about a tenth, ReMamber's 1e-4 by a negligible 0.1 %.
- Learning rate decay: linear to zero; the paper gives the epoch where it starts only.
- Warm-up of 1,000 steps, gradients clipped at norm 1: AdamW's second moments of new layers are inaccurate at
  first.
- EMA 0.9999, as in ReMamber's command; it starts at (1 + n) / (10 + n), so that the first weights fade.
- The loss: see `losses`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from tfanet.errors import UserError

PARTS = ("backbone", "text", "rest")
"""Parts of the model with their own learning rate; the first two can be frozen."""
EXPRESSIONS = ("one", "all")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

_FREE = (
    "accumulate", "checkpointing", "compile", "channels_last", "save_every", "workers", "device",
    "skip_nonfinite", "skip_broken",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. The defaults are the paper's.

    A resumed run may change the options for memory, speed and error limits only; see `fixed`.
    """

    epochs: int = 50
    batch: int = 8
    """Samples per optimizer step, over all processes and accumulation steps."""
    accumulate: int = 1
    """Gradient accumulation: each process computes its part of a batch in this many steps."""
    expressions: str = "one"
    """One of `EXPRESSIONS`: an epoch has one random expression of each reference, or all of them."""
    lr: float = 5e-5
    """Peak learning rate; see `schedule.lr_factor`."""
    backbone_share: float = 0.5
    """Learning rate factor of the image encoder."""
    text_share: float = 0.5
    """Learning rate factor of the text encoder."""
    weight_decay: float = 1e-2
    warmup: int = 1000
    """Steps of linear warm-up."""
    decay_from: float | None = None
    """Epoch from which the learning rate falls linearly to zero; None: half of `epochs`."""
    clip: float = 1.0
    """Maximum L2 norm of the gradient; infinity disables clipping."""
    ema: float = 0.9999
    """Decay of the exponential moving average of the weights, which is validated and saved; 0: none."""
    precision: str = "auto"
    """One of `PRECISIONS`; auto is bf16 on a GPU that supports it, else fp32. fp16 scales the loss."""
    freeze: tuple[str, ...] = ()
    """`PARTS` to freeze: backbone, text."""
    checkpointing: bool = False
    """Recompute the image encoder's activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Use torch.compile."""
    channels_last: bool = True
    seed: int = 0
    save_every: int = 500
    """Steps between two saved training states; each epoch also ends with one."""
    workers: int = 0
    """Data loader processes per training process; 0 loads in the training process."""
    device: str = "cpu"
    half_weights: bool = False
    """Save the checkpoints in FP16: half the size; the training state stays FP32."""
    skip_nonfinite: int = 0
    """Batches with a non-finite loss or gradient to skip before the run fails."""
    skip_broken: int = 0
    """Unreadable samples to replace before the run fails, per process."""

    split_by: str = ""
    """How the data set is split, so that a run is not resumed with another split; see `ReferFiles`."""
    data: str = ""
    """Identity of the training expressions, so that a run is not resumed on other data."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            unlimited = name == "clip" and value == math.inf
            if isinstance(value, float) and not (math.isfinite(value) or unlimited):
                raise UserError(f"--{name.replace('_', '-')} cannot be {value}")
        if self.clip <= 0:
            raise UserError(f"--clip must be above 0, not {self.clip:g}; inf disables clipping")
        if self.precision not in PRECISIONS:
            raise UserError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if self.expressions not in EXPRESSIONS:
            raise UserError(f"unknown expressions {self.expressions!r}; known: {', '.join(EXPRESSIONS)}")
        if unknown := set(self.freeze) - set(PARTS[:-1]):
            raise UserError(f"cannot freeze {', '.join(sorted(unknown))}; known: {', '.join(PARTS[:-1])}")
        if self.decay_from is not None and not 0 <= self.decay_from <= self.epochs:
            raise UserError(f"--decay-from must be from 0 to {self.epochs} (--epochs), not {self.decay_from}")

    def fixed(self) -> dict[str, int | float | str | bool | tuple[str, ...] | None]:
        """The options that a resumed run must not change."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}


@dataclass(frozen=True)
class Recipe:
    """A model, a data set and how to train it."""

    preset: str
    dataset: str
    token_length: int
    options: TrainingOptions
    validate: int | None = None
    """Validation expressions after each epoch; None: all."""


_PAPER = TrainingOptions(skip_nonfinite=20, skip_broken=100)
_TINY = replace(
    _PAPER, epochs=4, batch=16, lr=1e-3, backbone_share=1.0, text_share=1.0, warmup=200, ema=0.0,
    precision="fp32", expressions="all", skip_nonfinite=0, skip_broken=0,
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "tiny": Recipe("tiny", "refcoco", 17, _TINY, validate=300),
    "paper-refcoco": Recipe("base", "refcoco", 17, _PAPER),
    "paper-refcoco+": Recipe("base", "refcoco+", 17, _PAPER),
    "paper-gref": Recipe("base", "refcocog", 22, _PAPER),
}


def find_recipe(name: str) -> Recipe:
    """The recipe `name`. Raises `UserError` if it is unknown."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]
