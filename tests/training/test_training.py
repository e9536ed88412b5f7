"""Training: it learns, it resumes to the same weights, and it fails in one line."""

from __future__ import annotations

import csv
import os
import re
import signal

import pytest
import torch
from torch.utils.data import Dataset
from typer.testing import CliRunner

import tfanet
from tfanet.config import preset
from tfanet.data.refer import ReferDataset
from tfanet.data.transforms import TrainingPairs
from tfanet.errors import UserError, VerificationError
from tfanet.training.cli import app
from tfanet.training.loop import TrainingOptions, train
from tfanet.training.losses import segmentation_loss
from tfanet.training.schedule import epoch_batches, learning_rate, parameter_groups
from tfanet.training.state import load_state

SMALL = preset("tiny", image_size=32, vmamba_dims=(8, 8, 16, 16), vmamba_depths=(1, 1, 1, 1), drop_path=0.2)
OPTIONS = TrainingOptions(epochs=2, batch=4, warmup=2, save_every=2)


class FirstPairs(Dataset):
    """The first `count` pairs; at item `kill_at`, counted over all epochs, the process gets SIGTERM."""

    def __init__(self, root, count=12, kill_at=None):
        self.pairs = TrainingPairs(
            ReferDataset(root, "refcoco", "train"), SMALL.image_size, SMALL.token_length
        )
        self.count, self.kill_at, self.served = count, kill_at, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.served += 1
        if self.served == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.pairs[index]


def small_model():
    torch.manual_seed(3)
    return tfanet.TFANet(SMALL)


def test_an_interrupted_run_ends_with_the_same_weights(shapes_root, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    validation = FirstPairs(shapes_root, 4)
    for folder in (whole, broken):
        folder.mkdir()
    assert train(small_model(), FirstPairs(shapes_root), validation, whole, OPTIONS)

    interrupted = FirstPairs(shapes_root, kill_at=4 * 4)  # while the fourth of six batches is loaded
    assert not train(small_model(), interrupted, validation, broken, OPTIONS)
    assert load_state(broken / "training.pt", SMALL, OPTIONS.fixed()).step == 4
    torch.manual_seed(99)
    assert train(small_model(), FirstPairs(shapes_root), validation, broken, OPTIONS, resume=True)

    expected = tfanet.load_model(whole / "model.safetensors").state_dict()
    actual = tfanet.load_model(broken / "model.safetensors").state_dict()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    logs = [list(csv.DictReader((folder / "log.csv").open())) for folder in (whole, broken)]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert [row["step"] for row in logs[0] if row["val_miou"]] == ["3", "6"]


def test_it_learns(shapes_root, tmp_path):
    """Eight pairs by heart: the loss of the last steps is well below that of the first."""
    options = TrainingOptions(epochs=30, batch=8, warmup=5, rate=3e-3)
    train(small_model(), FirstPairs(shapes_root, 8), FirstPairs(shapes_root, 4), tmp_path, options)
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "log.csv").open()) if row["loss"]]
    assert len(losses) == 30
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])


def test_a_loss_that_is_not_finite_stops(shapes_root, tmp_path):
    model = small_model()
    with torch.no_grad():
        model.decoder.score.bias[0] = float("nan")
    with pytest.raises(VerificationError, match="the loss is nan at step 1"):
        train(model, FirstPairs(shapes_root), FirstPairs(shapes_root, 4), tmp_path, OPTIONS)
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_not_saved(shapes_root, tmp_path):
    options = TrainingOptions(epochs=1, batch=4, warmup=0, rate=1e30)
    with pytest.raises(VerificationError, match=r"not finite|the loss is"):
        train(small_model(), FirstPairs(shapes_root), FirstPairs(shapes_root, 4), tmp_path, options)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "training.pt").exists()


def test_a_torn_log_does_not_stop_a_resumed_run(shapes_root, tmp_path):
    stopped = FirstPairs(shapes_root, kill_at=4)
    assert not train(small_model(), stopped, FirstPairs(shapes_root, 4), tmp_path, OPTIONS)
    with (tmp_path / "log.csv").open("a") as file:
        file.write("x,")
    assert train(
        small_model(), FirstPairs(shapes_root), FirstPairs(shapes_root, 4), tmp_path, OPTIONS, resume=True
    )
    steps = [row["step"] for row in csv.DictReader((tmp_path / "log.csv").open()) if row["loss"]]
    assert steps == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("content", [b"", b"not a state", None], ids=["empty", "garbage", "other-kind"])
def test_a_damaged_state_is_one_line(tmp_path, content):
    path = tmp_path / "training.pt"
    if content is None:
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"training\.pt|is empty"):
        load_state(path, SMALL, OPTIONS.fixed())


def test_a_run_with_other_options_is_not_resumed(shapes_root, tmp_path):
    train(
        small_model(), FirstPairs(shapes_root, 4), FirstPairs(shapes_root, 4), tmp_path, TrainingOptions(1, 4)
    )
    with pytest.raises(UserError, match="epochs was 1"):
        load_state(tmp_path / "training.pt", SMALL, TrainingOptions(2, 4).fixed())
    with pytest.raises(UserError, match="another model config"):
        load_state(tmp_path / "training.pt", preset("tiny"), TrainingOptions(1, 4).fixed())


def test_learning_rate():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)


def test_epoch_batches_are_a_permutation_and_continue():
    whole = epoch_batches(23, 4, seed=1, epoch=2)
    drawn = [index for batch in whole for index in batch]
    assert len(drawn) == len(set(drawn))
    assert [len(batch) for batch in whole] == [4] * 5
    assert epoch_batches(23, 4, seed=1, epoch=2, start=3) == whole[3:]
    assert epoch_batches(23, 4, seed=1, epoch=3) != whole


def test_no_weight_decay_where_it_would_hurt(random_model):
    decay, keep = parameter_groups(random_model, 0.01)
    names = {id(p): name for name, p in random_model.named_parameters()}
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.01, 0.0)
    kept = {names[id(p)] for p in keep["params"]}
    assert {
        "decoder.alpha",
        "text.tower.token_embedding.weight",
        "vmamba.layers.0.blocks.0.op.A_logs",
    } <= kept
    assert all(p.ndim > 1 for p in decay["params"])
    assert len(decay["params"]) + len(keep["params"]) == len(names)


def test_loss_by_hand():
    """Logits 0, one of four pixels true: BCE = ln 2 (3*0.9 + 1.1)/4, dice = 1 - (2*0.5+1)/(2+1+1)."""
    loss = segmentation_loss(torch.zeros(1, 2, 2), torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8))
    assert loss.bce.item() == pytest.approx(0.6931472 * 3.8 / 4)
    assert loss.dice.item() == pytest.approx(0.5)
    assert loss.total.item() == pytest.approx(loss.bce.item() + loss.dice.item())


def test_command_line(shapes_root, tmp_path):
    arguments = ["--data", str(shapes_root), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch", "4"]
    arguments += ["--limit", "4", "--validate", "4"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "tfanet-eval --engine" in result.output
    assert re.match(r"on (cpu, scans vectorised|cuda, scans by \w+, )", result.output.splitlines()[1])
    assert tfanet.load_model(tmp_path / "run" / "model.safetensors").config == preset("tiny")
    with pytest.raises(UserError, match="holds a run already"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    with pytest.raises(UserError, match="with other options: data was refcoco"):
        CliRunner().invoke(app, [*arguments, "--resume", "--limit", "8"], catch_exceptions=False)
    with pytest.raises(UserError, match="half_weights was False"):
        CliRunner().invoke(app, [*arguments, "--resume", "--half-weights"], catch_exceptions=False)


def test_command_line_of_another_size_and_variant(shapes_root, tmp_path):
    arguments = ["--data", str(shapes_root), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch", "4"]
    arguments += ["--limit", "4", "--validate", "4", "--image-size", "64", "--variant", "b"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    trained = tfanet.load_model(tmp_path / "run" / "model.safetensors").config
    assert trained == preset("tiny", image_size=64, variant="b")
    assert trained.alignment == "none"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--variant", "z"], "unknown variant 'z'; known: a, b"),
        (["--image-size", "100"], "image_size must be a multiple of 32"),
        (["--text-tower", "ViT-Z"], "unknown text tower"),
        (["--vmamba-weights", "file"], "file is empty"),
        (["--clip-weights", "openai"], "no CLIP weights"),
        (["--dataset", "refcocox"], "refcocox"),
        (["--data", "nowhere"], "nowhere"),
        (["--limit", "3", "--batch", "4"], "fewer than one batch"),
        (["--out", "file/run"], "cannot write"),
        (["--device", "cuda"], "no CUDA device"),
        (["--device", "foo"], "unknown device 'foo'"),
        (["--token-length", "99"], "token_length must be"),
        (["--preset", "x" * 300], "unknown preset"),
        (["--out", "x" * 300], "cannot write"),
        (["--resume"], "training state"),
    ],
)
def test_mistakes_are_one_line(shapes_root, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    defaults = {"--data": str(shapes_root), "--out": "run"}
    for name, value in defaults.items():
        if name not in arguments:
            arguments = [*arguments, name, value]
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
