"""Official VMamba checkpoints: strict loading, old names, and one line for every other file."""

from __future__ import annotations

import pytest
import torch

from tfanet.config import preset
from tfanet.errors import UserError
from tfanet.vmamba import VMamba

CONFIG = preset("tiny", vmamba_dims=(8, 16, 16, 32), vmamba_depths=(1, 1, 2, 1), ssm_ratio=2.0)


def as_official(model, *, old_names=False):
    """The model's weights in the shapes, and with `old_names` the names, of an official checkpoint."""
    state = {}
    for name, tensor in model.state_dict().items():
        pointwise = tensor.dim() > 2 and all(size == 1 for size in tensor.shape[2:])
        value = tensor.flatten(1) if pointwise else tensor
        if old_names:
            for part in ("x_proj", "dt_projs"):
                if name.endswith(f".{part}.weight"):
                    name, value = (
                        name.replace(f"{part}.weight", f"{part}_weight"),
                        value.unflatten(0, (4, -1)),
                    )
            name = name.replace(".norm.", ".ln_1.").replace(".op.", ".self_attention.")
            name = name.replace("downsample.1.", "downsample.reduction.").replace(
                "downsample.3.", "downsample.norm."
            )
            name = name.replace("patch_embed.0.", "patch_embed.proj.").replace(
                "patch_embed.2.", "patch_embed.norm."
            )
        state[name] = value.clone()
    head = {"head.weight": torch.zeros(10, 32), "norm.weight": torch.zeros(32)}
    return state | (head if old_names else {f"classifier.{name}": tensor for name, tensor in head.items()})


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return VMamba(CONFIG)


@pytest.mark.parametrize("old_names", [False, True], ids=["today", "old-names"])
@pytest.mark.parametrize("from_file", [False, True], ids=["state-dict", "file"])
def test_weights_arrive_unchanged(source, tmp_path, old_names, from_file):
    state = as_official(source, old_names=old_names)
    assert set(state) != set(source.state_dict())
    if from_file:
        torch.save({"model": state}, tmp_path / "vssm.pth")
    target = VMamba(CONFIG)
    target.load_official(tmp_path / "vssm.pth" if from_file else state)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("layers.0.blocks.0.op.Ds"),
            r"1 parameters are missing \['layers.0.blocks.0.op.Ds'",
        ),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unknown \['extra'\]"),
        (lambda state: state.update({"patch_embed.0.weight": torch.zeros(5, 3, 3, 3)}), r"is \[5, 3, 3, 3\]"),
        (
            lambda state: state.update(
                {"layers.0.blocks.0.op.in_proj.weight": state["layers.0.blocks.0.op.in_proj.weight"].T}
            ),
            r"in_proj.weight is \[8, 16\], this model has \[16, 8, 1, 1\]",
        ),
    ],
    ids=["missing", "unknown", "shape", "transposed"],
)
def test_half_matching_checkpoints_are_refused(source, change, message):
    state = as_official(source)
    change(state)
    with pytest.raises(UserError, match=message):
        VMamba(CONFIG).load_official(state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"not a checkpoint", "no checkpoint|no PyTorch file"),
        ({"model": {"epoch": 3}}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"model": {}, "config": pytest.approx(1.0)}, "holds more than weights"),
    ],
    ids=["missing", "garbage", "other-model", "list", "objects"],
)
def test_wrong_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "vssm.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        VMamba(CONFIG).load_official(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_safetensors_file_is_one_line(tmp_path):
    """torch.load reads .safetensors too, and has that format's own error."""
    path = tmp_path / "vssm.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="truncated or no PyTorch file"):
        VMamba(CONFIG).load_official(path)
