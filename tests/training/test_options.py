"""Each option does what it says, on a few steps of a small model."""

from __future__ import annotations

import resource
from dataclasses import replace

import pytest
import torch
from small_runs import OPTIONS, Squares, losses, small_model

from tfanet.errors import UserError, VerificationError
from tfanet.training.loop import train
from tfanet.training.processes import Processes
from tfanet.training.steps import Stepper


def part(items: range) -> dict[str, torch.Tensor]:
    pairs = Squares(len(items))
    return {name: torch.stack([pairs[i][name] for i in items]) for name in ("image", "tokens", "mask")}


def one_step(**changes) -> tuple[Stepper, float]:
    stepper = Stepper(small_model(), replace(OPTIONS, **changes), Processes())
    return stepper, stepper.step([part(range(4))], stop=False).loss


def moved(stepper: Stepper) -> set[str]:
    """The parameters that are no longer those of `small_model`."""
    before = small_model().state_dict()
    found = stepper.model.named_parameters()
    return {name for name, tensor in found if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"precision": "bf16"}, 0.02), ({"checkpointing": True}, 1e-6), ({"channels_last": False}, 1e-5)],
    ids=["bf16", "checkpointing", "channels-first"],
)
def test_speed_and_memory_do_not_change_the_loss(changes, tolerance):
    plain, expected = one_step()
    other, loss = one_step(**changes)
    assert loss == pytest.approx(expected, rel=tolerance)
    assert other.model.state_dict().keys() == plain.model.state_dict().keys()
    assert moved(other) == moved(plain)


def test_frozen_parts_stay():
    stepper, _ = one_step(freeze=("backbone", "text"))
    assert {name.partition(".")[0] for name in moved(stepper)} == {"plus", "fusion", "decoder"}


def test_the_average_follows_the_weights():
    """The first step copies; the second moves by 1 - min(decay, (1 + 1) / (10 + 1))."""
    stepper = Stepper(small_model(), replace(OPTIONS, ema=0.9999), Processes())
    stepper.step([part(range(4))], stop=False)
    first = {name: tensor.clone() for name, tensor in stepper.model.named_parameters()}
    stepper.step([part(range(4))], stop=False)
    for (name, mean), value in zip(
        stepper.weights.named_parameters(), stepper.model.parameters(), strict=True
    ):
        torch.testing.assert_close(mean, first[name].lerp(value, 9 / 11), msg=name)


def test_the_averaged_model_computes():
    """Buffers are averaged, too, and one of them, the text tower's causal mask, holds infinities."""
    stepper = Stepper(small_model(), replace(OPTIONS, ema=0.9999), Processes())
    for _ in range(3):
        stepper.step([part(range(4))], stop=False)
    batch = part(range(2))
    with torch.inference_mode():
        logits = stepper.weights.eval()(batch["image"], batch["tokens"])
    assert torch.isfinite(logits).all()


def test_a_batch_that_is_not_finite_changes_nothing():
    stepper = Stepper(small_model(), OPTIONS, Processes())
    with torch.no_grad():
        stepper.model.decoder.lateral[0][0].weight[0, 0, 0, 0] = float("inf")
    before = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    assert not stepper.step([part(range(4))], stop=False).done
    for name, tensor in stepper.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_batches_that_are_not_finite_are_named_counted_and_limited(tmp_path, monkeypatch, capsys):
    model = small_model()
    forward = type(model).forward
    calls = []

    def sometimes(self, image, tokens):
        calls.append(0)
        return forward(self, image, tokens) * (float("nan") if self.training and len(calls) < 3 else 1.0)

    monkeypatch.setattr(type(model), "forward", sometimes)
    options = replace(OPTIONS, skip_nonfinite=2)
    assert train(model, Squares(16), Squares(2), tmp_path / "two", options)
    assert capsys.readouterr().err.count("left out: the loss is nan") == 2
    calls.clear()
    with pytest.raises(VerificationError, match=r"nan at step 2: pair \d+; pair \d+; pair \d+; pair \d+;"):
        train(model, Squares(16), Squares(2), tmp_path / "one", replace(OPTIONS, skip_nonfinite=1))


def test_pairs_that_cannot_be_read_are_listed_once_or_fatal(tmp_path, capsys):
    pairs = Squares(8, broken=(3, 4))
    assert train(small_model(), pairs, Squares(2), tmp_path, replace(OPTIONS, epochs=2, skip_broken=2))
    shown = capsys.readouterr().err
    assert shown.count("left out: pair 3: image 3.jpg is damaged") == 1
    assert shown.count("left out: pair 4: image 4.jpg is damaged") == 1
    with pytest.raises(UserError, match="2 pairs cannot be read"):
        train(small_model(), pairs, Squares(2), tmp_path / "limit", replace(OPTIONS, skip_broken=1))
    with pytest.raises(UserError, match=r"pair [34]: image [34].jpg is damaged"):
        train(small_model(), pairs, Squares(2), tmp_path / "fatal", OPTIONS)


def test_a_full_disk_is_one_line_and_the_last_state_stays(tmp_path):
    """A file may grow to 100 kB: the log fits, the state of 10 MB does not."""
    assert train(small_model(), Squares(), Squares(2), tmp_path, OPTIONS)
    kept = {name: (tmp_path / name).read_bytes() for name in ("training.pt", "model.safetensors")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"^cannot write .*training\.pt: [^\n]*$"):
            train(small_model(), Squares(), Squares(2), tmp_path, OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert not list(tmp_path.glob(".*"))


def test_what_is_seen(tmp_path):
    assert train(small_model(), Squares(), Squares(2), tmp_path, OPTIONS, splits={"val": Squares(2)})
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("training/loss")] == pytest.approx(
        losses(tmp_path), rel=1e-5
    )
    assert board.Images("validation/predictions")[0].step == 2
    assert Image.open(tmp_path / "curves.png").width > 1000
    assert (tmp_path / "splits.csv").read_text().startswith("split,expressions,mIoU,oIoU\nval,2,")
