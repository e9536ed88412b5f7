"""Training steps of ReMamber, by the code of a checkout of its repository."""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tfanet.errors import UserError

if TYPE_CHECKING:
    from tfanet.training.options import TrainingOptions


@contextmanager
def remamber_steps(
    folder: Path, options: TrainingOptions, pairs: dict[str, Tensor], expression: str
) -> Iterator[Callable[[], float]]:
    """Optimizer steps as in ReMamber's `main.py --model-ema`; each returns the loss.

    `folder` is the checkout. Its code reads the VMamba checkpoint from `pretrain` in that folder, and CLIP
    from the cache of transformers. Its data set normalises the images; that is not timed.
    """
    device = torch.device(options.device)
    images = pairs["image"].permute(0, 3, 1, 2).contiguous().float() / 255
    masks = pairs["mask"][:, None].float()
    with _imports_from(folder):
        from timm.utils.cuda import NativeScaler
        from timm.utils.model_ema import ModelEma

        segmenter = importlib.import_module("model.conv_segmenter")
        model, new = segmenter.ReMamber_Conv(img_size=images.shape[-1], model_size="base")
        model.to(device)
        lrs = Namespace(lr=5e-5, lr_decoder=5e-5, lr_backbone=2.5e-5, lr_vssm=2.5e-5, weight_decay=1e-4)
        optimizer = importlib.import_module("model.utils").create_optimizer(lrs, model, new)
        ema = ModelEma(model, decay=options.ema)
        half = device.type == "cuda" and options.precision != "fp32"
        scaler = NativeScaler() if half else None

        def step() -> float:
            model.train()
            image, target = (x.to(device, non_blocking=True) for x in (images, masks))
            with torch.autocast(device.type, torch.float16, enabled=half):
                loss = model(image, [expression] * len(image), target)[2]
            value = loss.item()
            optimizer.zero_grad()
            if scaler is not None:
                scaler(loss, optimizer, parameters=model.parameters())
            else:
                loss.backward()
                optimizer.step()
            ema.update(model)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return value

        yield step


@contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Import and work in `folder`; its modules are removed from `sys.modules` afterwards.

    Raises `UserError` if it is not a checkout of ReMamber.
    """
    if not (folder / "model" / "conv_segmenter.py").is_file():
        raise UserError(f"{folder} is not a checkout of ReMamber: model/conv_segmenter.py is missing")
    before, cwd, folder = set(sys.modules), Path.cwd(), folder.resolve()
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(cwd)
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("model", "vmamba_model"):
                del sys.modules[name]
