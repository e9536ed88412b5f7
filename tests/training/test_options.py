"""The effect of each training option, on a few steps of a small model."""

from __future__ import annotations

import math
import os
import resource
import signal
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small_runs import OPTIONS, SMALL, Squares, losses, small_model, smallest_model
from torch import nn
from torch._dynamo import lookup_backend

from tfanet.errors import UserError, VerificationError
from tfanet.training.evaluate import evaluate
from tfanet.training.loop import train
from tfanet.training.processes import Processes
from tfanet.training.records import LOG_COLUMNS, draw_curves
from tfanet.training.steps import Stepper, compiled_parts
from tfanet.vmamba import StochasticDepth

pytestmark = pytest.mark.integration


def part(items: Iterable[int]) -> dict[str, torch.Tensor]:
    samples = [Squares()[i] for i in items]
    return {name: torch.stack([sample[name] for sample in samples]) for name in ("image", "tokens", "mask")}


def one_step(**changes) -> tuple[Stepper, float]:
    stepper = Stepper(small_model(), replace(OPTIONS, **changes), Processes())
    return stepper, stepper.step([part(range(4))], stop=False).loss


def changed(stepper: Stepper) -> set[str]:
    """Names of the parameters that differ from those of `small_model`."""
    before = small_model().state_dict()
    parameters = stepper.model.named_parameters()
    return {name for name, tensor in parameters if not torch.equal(tensor, before[name])}


@pytest.fixture(scope="module")
def plain() -> tuple[Stepper, float]:
    return one_step()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_has_nearly_the_same_loss(plain, precision):
    other, loss = one_step(precision=precision)
    assert loss == pytest.approx(plain[1], rel=0.02)
    assert loss != plain[1]
    assert all(tensor.dtype == torch.float32 for tensor in other.model.parameters())
    assert changed(other) == changed(plain[0])


def test_channels_last_does_not_change_the_loss(plain):
    first, loss = one_step(channels_last=False)
    assert loss == pytest.approx(plain[1], rel=1e-5)
    kernels = [stepper.model.vmamba.layers[0].downsample[1].weight for stepper in (plain[0], first)]
    assert [x.is_contiguous(memory_format=torch.channels_last) for x in kernels] == [True, False]


def test_checkpointing_saves_memory_and_has_the_same_gradients():
    """With stochastic depth, whose random choices must be the same when a block is recomputed."""
    results = []
    for checkpointing in (False, True):
        model = small_model(replace(SMALL, vmamba_depths=(3, 1, 1, 1), drop_path=0.5))
        stepper = Stepper(model, replace(OPTIONS, checkpointing=checkpointing), Processes())
        torch.manual_seed(1)
        saved = []

        def save(x, saved=saved):
            saved.append(x.nbytes)
            return x

        with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
            stepper.step([part(range(4))], stop=False)
        results.append((sum(saved), {name: x.grad for name, x in stepper.model.named_parameters()}))
    (all_bytes, expected), (fewer_bytes, actual) = results
    assert fewer_bytes < 0.95 * all_bytes
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=name)


def test_two_accumulation_steps_equal_one_batch():
    """BatchNorm, whose statistics are of one part at a time, uses its running statistics here."""
    results, gradients = [], []
    for parts in ([range(8)], [range(4), range(4, 8)]):
        model = small_model().double()
        stepper = Stepper(model, replace(OPTIONS, batch=8, accumulate=len(parts)), Processes())
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().train = lambda mode=True, own=module: own
        results.append(stepper.step([part(items) for items in parts], stop=False)[:4])
        gradients.append([x.grad for x in model.parameters()])
    assert results[1] == pytest.approx(results[0], rel=1e-6)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(two, one)


def test_fp16_lowers_the_scale_when_a_gradient_overflows():
    stepper = Stepper(small_model(), replace(OPTIONS, precision="fp16"), Processes())
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    result = stepper.step([part(range(4))], stop=False)
    assert result.updated
    assert not math.isfinite(result.grad_norm)
    assert stepper.scaler.get_scale() == 2.0**59
    assert changed(stepper) == set()
    with torch.no_grad():
        stepper.model.decoder.score.weight.mul_(1e38)
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    assert not stepper.step([part(range(4))], stop=False).updated


def test_fp16_run_resumes_with_its_scale_and_in_no_other_precision(tmp_path):
    options = replace(OPTIONS, precision="fp16", epochs=2, save_every=1)
    state = tmp_path / "interrupted" / "training.pt"
    assert train(smallest_model(), Squares(4), Squares(2), tmp_path / "uninterrupted", options)
    model = smallest_model()

    class Stopped(Squares):
        def __getitem__(self, index):
            if index == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    assert not train(model, Stopped(4), Squares(2), state.parent, options)
    saved = torch.load(state, weights_only=True)
    assert (saved["step"], saved["trained"]["scaler"]["scale"]) == (1, 2.0**15)  # it began with 2**16
    with pytest.raises(UserError, match="precision was fp16"):
        train(model, Squares(4), Squares(2), state.parent, replace(options, precision="fp32"), resume=state)
    assert train(smallest_model(), Squares(4), Squares(2), state.parent, options, resume=state)
    assert losses(state.parent) == losses(tmp_path / "uninterrupted")
    states = [torch.load(path, weights_only=True) for path in tmp_path.glob("*/training.pt")]
    assert states[0]["trained"]["scaler"] == states[1]["trained"]["scaler"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_parts_have_the_same_gradients(plain, monkeypatch, checkpointing):
    """Each part is one graph with its gradients; validation compiles none. The next test compiles kernels."""
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return lookup_backend("aot_eager")(module, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    other, loss = one_step(compile=True, checkpointing=checkpointing)
    assert loss == pytest.approx(plain[1], rel=1e-5)
    for one, two in zip(plain[0].model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-5)
    assert len(graphs) == len(compiled_parts(other.model))  # no two parts have the same sizes

    def loader(samples, batches):
        return (part(batch) | {"index": torch.tensor(batch)} for batch in batches)

    evaluate(other, Squares(3), loader)
    assert len(graphs) == len(compiled_parts(other.model))


@pytest.mark.slow
def test_compiled_block_computes_the_same():
    """With the compiler's kernels, which take many minutes to compile for a whole model on a CPU."""
    block = small_model().vmamba.stages[0].blocks[0].train()
    compiled = deepcopy(block)
    compiled.compile(dynamic=False)
    x = torch.rand(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, given in zip((block, compiled), inputs, strict=True):
        module(given).square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
    for one, two in zip(block.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-5)


def test_blocks_of_different_stochastic_depth_share_compiled_code():
    model = small_model(replace(SMALL, vmamba_depths=(4, 1, 1, 1), drop_path=0.5)).train()
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    x = torch.ones(2, 8, 8, 8)
    for block in model.vmamba.stages[0].blocks:
        block.compile(dynamic=False, backend=backend)
        x = block(x)
    assert len(graphs) == 2  # the first rate is 0: no random choice


def test_stochastic_depth_keeps_the_mean():
    branch = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 1, 1)
    torch.manual_seed(0)
    y = branch.train()(x)
    assert set(y.flatten().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.mean().item() == pytest.approx(1, abs=0.03)  # the standard deviation of the mean is 0.009
    assert branch.eval()(x) is x
    assert StochasticDepth(0.0).train()(x) is x


def test_frozen_parts_do_not_change():
    stepper, _ = one_step(freeze=("backbone", "text"))
    assert {name.partition(".")[0] for name in changed(stepper)} == {"plus", "fusion", "decoder"}


def test_moving_average_follows_the_weights():
    """The first step copies; the second moves by 1 - min(decay, (1 + 1) / (10 + 1))."""
    stepper = Stepper(small_model(), replace(OPTIONS, ema=0.9999), Processes())
    stepper.step([part(range(4))], stop=False)
    first = {name: tensor.clone() for name, tensor in stepper.model.named_parameters()}
    stepper.step([part(range(4))], stop=False)
    for (name, mean), value in zip(
        stepper.weights.named_parameters(), stepper.model.parameters(), strict=True
    ):
        torch.testing.assert_close(mean, first[name].lerp(value, 9 / 11), msg=name)


def test_averaged_model_has_finite_outputs():
    """One of the buffers, the text tower's causal mask, has infinities, whose average is NaN."""
    stepper = Stepper(small_model(), replace(OPTIONS, ema=0.9999), Processes())
    for _ in range(3):
        stepper.step([part(range(4))], stop=False)
    batch = part(range(2))
    with torch.inference_mode():
        logits = stepper.weights.eval()(batch["image"], batch["tokens"])
    assert torch.isfinite(logits).all()


def test_non_finite_batch_changes_no_weight():
    stepper = Stepper(small_model(), OPTIONS, Processes())
    with torch.no_grad():
        stepper.model.decoder.lateral[0][0].weight[0, 0, 0, 0] = float("inf")
    before = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    assert not stepper.step([part(range(4))], stop=False).updated
    for name, tensor in stepper.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_non_finite_batches_are_reported_and_limited(tmp_path, monkeypatch, capsys):
    model = small_model()
    forward = type(model).forward
    calls = []

    def sometimes(self, image, tokens):
        calls.append(0)
        return forward(self, image, tokens) * (float("nan") if self.training and len(calls) < 3 else 1.0)

    monkeypatch.setattr(type(model), "forward", sometimes)
    options = replace(OPTIONS, skip_nonfinite=2)
    assert train(model, Squares(16), Squares(2), tmp_path / "two", options)
    assert capsys.readouterr().err.count("skipped: loss nan") == 2
    calls.clear()
    with pytest.raises(VerificationError, match=r"nan at step 2: (sample \d+; ){3}sample \d+"):
        train(model, Squares(16), Squares(2), tmp_path / "one", replace(OPTIONS, skip_nonfinite=1))


def test_unreadable_samples_are_reported_once_and_limited(tmp_path, capsys):
    pairs = Squares(8, broken=(3, 4))
    assert train(small_model(), pairs, Squares(2), tmp_path, replace(OPTIONS, epochs=2, skip_broken=2))
    shown = capsys.readouterr().err
    assert shown.count("skipped: sample 3: image 3.jpg is damaged") == 1
    assert shown.count("skipped: sample 4: image 4.jpg is damaged") == 1
    with pytest.raises(UserError, match="2 samples are unreadable"):
        train(small_model(), pairs, Squares(2), tmp_path / "limit", replace(OPTIONS, skip_broken=1))
    with pytest.raises(UserError, match=r"sample [34]: image [34].jpg is damaged"):
        train(small_model(), pairs, Squares(2), tmp_path / "fatal", OPTIONS)


def test_full_disk_is_one_line_and_the_last_state_stays(tmp_path):
    """With a file size limit of 100 kB: the log fits, the state of 10 MB does not."""
    assert train(small_model(), Squares(), Squares(2), tmp_path, OPTIONS)
    before = {name: (tmp_path / name).read_bytes() for name in ("training.pt", "model.safetensors")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"^cannot write .*training\.pt: [^\n]*$"):
            train(small_model(), Squares(), Squares(2), tmp_path, OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob(".*"))


def test_run_writes_its_records(tmp_path):
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


def test_single_point_of_a_curve_is_visible():
    """A line through one point would be invisible."""
    row = dict.fromkeys(LOG_COLUMNS, "") | {"step": "4", "val_miou": "0.5"}
    first_colour = (31, 119, 180)

    def coloured_pixels(rows):
        return (np.asarray(draw_curves(rows)) == first_colour).all(axis=2).sum()

    assert coloured_pixels([row]) > coloured_pixels([])


def test_long_noisy_loss_has_a_moving_average():
    """A loss alternating between two values would fill the plot; its mean is a line at half the height."""
    blank = dict.fromkeys(LOG_COLUMNS, "")
    rows = [blank | {"step": str(step), "loss": str(step % 2)} for step in range(600)]
    first_colour = np.array([31, 119, 180])
    full = (np.abs(np.asarray(draw_curves(rows)) - first_colour) < 60).all(axis=2)
    across = full[:, 60:420].mean(axis=1) > 0.5  # pixel rows mostly covered by the curve
    assert 0 < across.sum() < 8
