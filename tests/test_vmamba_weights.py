"""Official VMamba checkpoints: strict loading of every form, one-line errors for every other file."""

from __future__ import annotations

import pytest
import torch

from tfanet.config import preset
from tfanet.errors import UserError
from tfanet.vmamba import VMamba

CONFIG = preset("tiny", vmamba_dims=(8, 16, 16, 32), vmamba_depths=(1, 1, 2, 1), ssm_ratio=2.0)
CLASSIFIER = {"classifier.norm.weight": torch.zeros(32), "classifier.head.weight": torch.zeros(10, 32)}
OUTNORMS = {f"outnorm{i}.weight": torch.zeros(8) for i in range(4)}


def encoder_of(model):
    """The model's weights in the shapes of the present official code: 1x1 layers are matrices."""
    state = {}
    for name, tensor in model.state_dict().items():
        pointwise = tensor.dim() > 2 and all(size == 1 for size in tensor.shape[2:])
        state[name] = (tensor.flatten(1) if pointwise else tensor).clone()
    return state


def released(model):
    """The same in the names and shapes of the code of 2024, which wrote the released files."""
    state = encoder_of(model)
    for name in [name for name in state if name.endswith(("x_proj.weight", "dt_projs.weight"))]:
        state[name.removesuffix(".weight") + "_weight"] = state.pop(name).unflatten(0, (4, -1))
    return state


def training(model):
    """A checkpoint of the official training, whose `model_ema` must not be loaded."""
    state = released(model) | CLASSIFIER
    ema = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    return {
        "model": state,
        "model_ema": ema,
        "optimizer": {"state": {}},
        "epoch": 3,
        "max_accuracy": 80.0,
    }


def segmenter(model):
    """A checkpoint of the official detection and segmentation, which are OpenMMLab's."""
    backbone = {f"backbone.{name}": tensor for name, tensor in (released(model) | OUTNORMS).items()}
    return {"meta": {"iter": 3}, "state_dict": backbone | {"decode_head.conv_seg.weight": torch.zeros(1)}}


FORMS = {
    "today": lambda model: encoder_of(model) | CLASSIFIER,
    "released": lambda model: released(model) | CLASSIFIER,
    "without-classifier": encoder_of,
    "backbone": lambda model: released(model) | OUTNORMS,
    "ours": lambda model: model.state_dict(),
}
FILES = {
    "today": lambda model: {"model": FORMS["today"](model)},
    "released": lambda model: {"model": FORMS["released"](model)},
    "training": training,
    "segmenter": segmenter,
    "state-dict-alone": FORMS["released"],
}


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return VMamba(CONFIG)


def assert_same_weights(target, source):
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_state_dict_loads(source, form):
    target = VMamba(CONFIG)
    target.load_official(FORMS[form](source))
    assert_same_weights(target, source)


@pytest.mark.parametrize("form", FILES)
def test_every_form_of_file_loads(source, tmp_path, form):
    torch.save(FILES[form](source), tmp_path / "vssm.pth")
    target = VMamba(CONFIG)
    target.load_official(tmp_path / "vssm.pth")
    assert_same_weights(target, source)


def renamed(state, old, new):
    return {name.replace(old, new): tensor for name, tensor in state.items()}


SOME = "layers.0.blocks.0.op.in_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda state: {n: t for n, t in state.items() if n != SOME},
            rf"another variant: 1 parameters are missing \['{SOME}'\], 0 unknown",
            id="missing",
        ),
        pytest.param(lambda state: state | {"extra": torch.zeros(1)}, r"1 unknown \['extra'\]", id="unknown"),
        pytest.param(
            lambda state: renamed(state, "layers.2.blocks.1.mlp", "layers.2.blocks.1.ffn"),
            r"4 parameters are missing \['layers.2.blocks.1.mlp.*4 unknown \['layers.2.blocks.1.ffn",
            id="half-renamed",
        ),
        pytest.param(
            lambda state: renamed(renamed(state, ".norm.", ".ln_1."), ".op.", ".self_attention."),
            r"parameters are missing .* unknown \['layers.0.blocks.0.ln_1",
            id="first-version",
        ),
        pytest.param(
            lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
            r"begin with 'module.': save its state dict as {name.removeprefix\('module.'\)",
            id="ddp",
        ),
        pytest.param(
            lambda state: {f"vmamba.{name}": tensor for name, tensor in state.items()},
            r"begin with 'vmamba.'",
            id="inside-a-model",
        ),
        pytest.param(lambda state: CLASSIFIER, r"110 parameters are missing", id="classifier-alone"),
        pytest.param(
            lambda state: state | {"patch_embed.0.weight": torch.zeros(5, 3, 3, 3)},
            r"patch_embed.0.weight is \[5, 3, 3, 3\], this model has \[4, 3, 3, 3\]",
            id="shape",
        ),
        pytest.param(
            lambda state: state | {SOME: state[SOME].T},
            r"in_proj.weight is \[8, 16\], this model has \[16, 8, 1, 1\]",
            id="transposed",
        ),
    ],
)
def test_mismatched_checkpoints_are_rejected(source, change, message):
    """And none of their tensors is loaded."""
    target = VMamba(CONFIG)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        target.load_official(change(encoder_of(source)))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"not a checkpoint", "not a checkpoint|not a PyTorch file", id="garbage"),
        pytest.param({"model": {"epoch": 3}}, "has no VMamba state dict", id="other-model"),
        pytest.param({"model_ema": {"a": torch.zeros(1)}}, "has no VMamba state dict", id="average-alone"),
        pytest.param([1, 2], "has no VMamba state dict", id="list"),
        pytest.param(
            {"model": {}, "config": pytest.approx(1.0)},
            r"not a checkpoint of weights alone.*weights_only=False\)\['model'\]",
            id="objects",
        ),
    ],
)
def test_invalid_files_give_one_line(tmp_path, content, message):
    path = tmp_path / "vssm.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        VMamba(CONFIG).load_official(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.5, 0.999], ids=["half", "almost-all"])
def test_a_truncated_file_gives_one_line(source, tmp_path, kept):
    path = tmp_path / "vssm.pth"
    torch.save(FILES["released"](source), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match="truncated or not a PyTorch file"):
        VMamba(CONFIG).load_official(path)


def test_a_damaged_safetensors_file_gives_one_line(tmp_path):
    """torch.load reads .safetensors too, and has that format's own error."""
    path = tmp_path / "vssm.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="truncated or not a PyTorch file"):
        VMamba(CONFIG).load_official(path)
