"""What a training run does, and the recipes: the paper's for each data set, and that of the bundled model.

The paper (4.1) gives 480 x 480 pixels, 17 or 22 tokens, 50 epochs, AdamW, a rate that decays from epoch 25,
and batch 8. What it leaves out is chosen so:

- Rates: ReMamber's, the nearest model: 5e-5, and half of it for the pretrained encoders.
- Sentences: one of each reference an epoch, drawn anew each time, as LAVT and ReMamber train: an epoch of
  RefCOCO is its 42,404 references, 5,300 steps, not its 120,624 sentences.
- Weight decay: LAVT's 1e-2. AdamW shrinks a weight by rate x decay a step: over RefCOCO's 265,000 steps 1e-2
  shrinks an unused weight by about a tenth, and ReMamber's 1e-4 by 0.1 %, which is none.
- Decay: linear to zero, as the paper names the epoch of its start only.
- Warm-up of 1,000 steps, gradients clipped at norm 1: AdamW's second moments of the new layers are young.
- EMA 0.9999, as in ReMamber's command; it starts at (1 + n) / (10 + n), so that the first weights fade.
- The loss: see `losses`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from tfanet.errors import UserError

PARTS = ("backbone", "text", "rest")
"""Parts of the model with their own rate; the first two can be frozen."""
SENTENCES = ("one", "all")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

_FREE = (
    "accumulate", "checkpointing", "compile", "channels_last", "save_every", "workers", "device",
    "skip_nonfinite", "skip_broken",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingOptions:
    """The defaults are the paper's; a resumed run may change memory, speed and patience only."""

    epochs: int = 50
    batch: int = 8
    """Pairs an optimizer step, over all processes and accumulated parts."""
    accumulate: int = 1
    """Parts that a process computes its share of a batch in, one after the other."""
    sentences: str = "one"
    """One of `SENTENCES`: an epoch has one sentence of each reference, drawn anew, or all of them."""
    rate: float = 5e-5
    """Peak learning rate; see `schedule.rate_factor`."""
    backbone_share: float = 0.5
    """The image encoder's rate as a share of `rate`."""
    text_share: float = 0.5
    weight_decay: float = 1e-2
    warmup: int = 1000
    """Steps of linear warm-up."""
    decay_from: float | None = None
    """Epoch from which the rate falls linearly to zero; None: half of `epochs`."""
    clip: float = 1.0
    """Largest L2 norm of the gradient; infinity clips none."""
    ema: float = 0.9999
    """Decay of the weights' moving average, which is validated and stored; 0: none."""
    precision: str = "auto"
    """One of `PRECISIONS`; auto is bf16 on a GPU that has it, else fp32. fp16 scales its loss."""
    freeze: tuple[str, ...] = ()
    """`PARTS` that are not trained: backbone, text."""
    checkpointing: bool = False
    """Compute the image encoder's activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Use torch.compile."""
    channels_last: bool = True
    seed: int = 0
    save_every: int = 500
    """Steps between two savings of the training state; an epoch's end saves too."""
    workers: int = 0
    """Processes that load data, for each training process; 0 loads in the training process."""
    device: str = "cpu"
    half_weights: bool = False
    """Store the checkpoints in FP16: half the size; the training state stays FP32."""
    skip_nonfinite: int = 0
    """Batches with a loss or gradient that is not finite that are left out before the run stops."""
    skip_broken: int = 0
    """Pairs that cannot be read that are replaced before the run stops, for each process."""

    split_by: str = ""
    """How the data set is split, so that a run is not resumed on another division; see `ReferFiles`."""
    data: str = ""
    """Identity of the training expressions, so that a run is not resumed on others."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            endless = name == "clip" and value == math.inf  # no clipping
            if isinstance(value, float) and not (math.isfinite(value) or endless):
                raise UserError(f"--{name.replace('_', '-')} cannot be {value}")
        if self.clip <= 0:
            raise UserError(f"--clip {self.clip:g} would leave nothing of any gradient; inf clips none")
        if self.precision not in PRECISIONS:
            raise UserError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if self.sentences not in SENTENCES:
            raise UserError(f"unknown sentences {self.sentences!r}; known: {', '.join(SENTENCES)}")
        if odd := set(self.freeze) - set(PARTS[:-1]):
            raise UserError(f"cannot freeze {', '.join(sorted(odd))}; known: {', '.join(PARTS[:-1])}")
        if self.decay_from is not None and not 0 <= self.decay_from <= self.epochs:
            raise UserError(f"the rate cannot fall from epoch {self.decay_from} of {self.epochs}")

    def fixed(self) -> dict[str, int | float | str | bool | tuple[str, ...] | None]:
        """The options that a resumed run must share."""
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
    _PAPER, epochs=4, batch=16, rate=1e-3, backbone_share=1.0, text_share=1.0, warmup=200, ema=0.0,
    precision="fp32", sentences="all", skip_nonfinite=0, skip_broken=0,
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "tiny": Recipe("tiny", "refcoco", 17, _TINY, validate=300),
    "paper-refcoco": Recipe("base", "refcoco", 17, _PAPER),
    "paper-refcoco+": Recipe("base", "refcoco+", 17, _PAPER),
    "paper-gref": Recipe("base", "refcocog", 22, _PAPER),
}


def find_recipe(name: str) -> Recipe:
    """The recipe `name`; `UserError` when it is unknown."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]
