"""The named blocks of a model, stage x module: the units in which precision is measured and chosen.

| name                                   | module                                                   |
|----------------------------------------|----------------------------------------------------------|
| `text.block3`, `text.norm`             | a layer of the CLIP tower, its last normalisation        |
| `stage1.embed`                         | the image encoder's patch embedding                      |
| `stage2.vss1`                          | a VSS block                                              |
| `stage2.kps`                           | Knowledge Plus Stage, or its variant of Table 3          |
| `stage2.kfs1`                          | a block of the Knowledge Fusion Stage, or its variant    |
| `stage2.down`                          | the downsampling that leads to stage 3                   |
| `decoder.lateral1`, `decoder.score`    | a convolution of the decoder; with stage or step         |

Stages, blocks and steps count from 1. Operations between blocks (sums, resizing, concatenation) have no
weights and compute in the widest dtype of their operands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tfanet.errors import UserError
from tfanet.model import TFANet

Blocks = dict[str, nn.Module]


def blocks_of(model: TFANet) -> Blocks:
    """Every block of `model` by name, roughly in the order of computation; no block contains another."""
    tower = model.text.tower
    blocks: Blocks = _numbered("text.block", cast(nn.ModuleList, tower.transformer.resblocks))
    blocks["text.norm"] = cast(nn.Module, tower.ln_final)
    blocks["stage1.embed"] = model.vmamba.patch_embed
    for number, (stage, plus, fusion) in enumerate(
        zip(model.vmamba.stages, model.plus, model.fusion, strict=True), start=1
    ):
        blocks |= _numbered(f"stage{number}.vss", stage.blocks)
        blocks[f"stage{number}.kps"] = plus
        inner = getattr(fusion, "blocks", None)
        blocks |= _numbered(f"stage{number}.kfs", inner if inner is not None else [fusion])
        if not isinstance(stage.downsample, nn.Identity):
            blocks[f"stage{number}.down"] = stage.downsample
    for name, part in model.decoder.named_children():
        listed = isinstance(part, nn.ModuleList)
        blocks |= _numbered(f"decoder.{name}", part) if listed else {f"decoder.{name}": part}
    return blocks


def require_blocks(model: TFANet, names: Collection[str]) -> Blocks:
    """`blocks_of(model)`; raises `UserError` if one of `names` is not among them."""
    known = blocks_of(model)
    if unknown := sorted(set(names) - known.keys()):
        raise UserError(f"the model has no block {', '.join(unknown)}; its blocks: {', '.join(known)}")
    return known


def tensors_of(value: Any) -> list[Tensor]:
    """The floating-point tensors in a block's inputs or output, a tensor or a nested container."""
    return [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor) and x.is_floating_point()]


@contextmanager
def hook_blocks(
    model: TFANet, on_output: Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
) -> Iterator[None]:
    """Within the `with`, call `on_output(name, block, args, kwargs, output)` after every block's forward."""
    handles = []
    for name, block in blocks_of(model).items():

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name=name):
            on_output(name, module, args, kwargs, output)

        handles.append(block.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _numbered(prefix: str, parts: Any) -> Blocks:
    return {f"{prefix}{i}": part for i, part in enumerate(parts, start=1)}
