"""Training: the loss falls, a run resumes to the same weights, faults end in one line; the schedule."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_runs import SMALLEST, log_rows, losses, small_model
from torch.utils.data import ConcatDataset, Dataset

import tfanet
from tfanet.config import preset
from tfanet.data.refer import ReferDataset
from tfanet.data.transforms import TrainingPairs
from tfanet.errors import UserError, VerificationError
from tfanet.training.loop import train
from tfanet.training.losses import segmentation_loss
from tfanet.training.options import RECIPES, TrainingOptions
from tfanet.training.schedule import epoch_batches, lr_factor, parameter_groups, rank_batches
from tfanet.training.state import FORMAT, load_state

pytestmark = pytest.mark.integration

SMALL = replace(SMALLEST, drop_path=0.2)
OPTIONS = TrainingOptions(epochs=2, batch=4, lr=1e-3, warmup=2, save_every=2, precision="fp32")


class FirstSamples(Dataset):
    """The first `count` samples; at item `kill_at`, counted over all epochs, the process gets SIGTERM."""

    def __init__(self, root, count=12, kill_at=None):
        self.pairs = TrainingPairs(
            ReferDataset(root, "refcoco", "train"), SMALL.image_size, SMALL.token_length
        )
        self.source = self.pairs.source
        self.count, self.kill_at, self.served = count, kill_at, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.served += 1
        if self.served == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.pairs[index]


def test_interrupted_run_ends_with_the_same_weights(shapes_root, tmp_path):
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    validation = FirstSamples(shapes_root, 4)
    assert train(small_model(SMALL), FirstSamples(shapes_root), validation, uninterrupted, OPTIONS)

    samples = FirstSamples(shapes_root, kill_at=4 * 4)  # while the fourth of six batches is loaded
    assert not train(small_model(SMALL), samples, validation, interrupted, OPTIONS)
    state = interrupted / "training.pt"
    assert load_state(state, SMALL, OPTIONS.fixed()).step == 4
    with (interrupted / "log.csv").open("a") as file:
        file.write("x,")  # a row truncated by a crash
    torch.manual_seed(99)
    assert train(
        small_model(SMALL), FirstSamples(shapes_root), validation, interrupted, OPTIONS, resume=state
    )

    expected = tfanet.load_model(uninterrupted / "model.safetensors").state_dict()
    actual = tfanet.load_model(interrupted / "model.safetensors").state_dict()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    logs = [log_rows(folder) for folder in (uninterrupted, interrupted)]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert [row["step"] for row in logs[1] if row["loss"]] == ["1", "2", "3", "4", "5", "6"]
    assert [row["step"] for row in logs[0] if row["val_miou"]] == ["3", "6"]


def test_loss_falls(shapes_root, tmp_path):
    """On the same four samples, the loss of the last steps is well below that of the first."""
    options = TrainingOptions(epochs=1, batch=4, warmup=5, lr=3e-3, ema=0.0)
    samples = ConcatDataset([FirstSamples(shapes_root, 4)] * 24)
    train(small_model(), samples, FirstSamples(shapes_root, 4), tmp_path, options)
    values = losses(tmp_path)
    assert len(values) == 24
    assert sum(values[-3:]) < 0.75 * sum(values[:3])


def test_non_finite_loss_fails(shapes_root, tmp_path):
    model = small_model(SMALL)
    with torch.no_grad():
        model.decoder.score.bias[0] = float("nan")
    with pytest.raises(VerificationError, match=r"loss nan.* at step 1: image \d+ '"):
        train(model, FirstSamples(shapes_root), FirstSamples(shapes_root, 4), tmp_path, OPTIONS)
    assert not (tmp_path / "model.safetensors").exists()


def test_non_finite_weights_are_not_saved(shapes_root, tmp_path):
    options = TrainingOptions(epochs=1, batch=4, warmup=0, lr=1e30, ema=0.0)
    with pytest.raises(VerificationError, match=r"not finite|loss (nan|inf)"):
        train(small_model(SMALL), FirstSamples(shapes_root), FirstSamples(shapes_root, 4), tmp_path, options)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "training.pt").exists()


@pytest.mark.parametrize("content", [b"", b"not a state", None], ids=["empty", "garbage", "another-file"])
def test_damaged_state_is_one_line(tmp_path, content):
    path = tmp_path / "training.pt"
    if content is None:
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"training\.pt|is empty"):
        load_state(path, SMALL, OPTIONS.fixed())


def test_truncated_state_is_one_line(tmp_path):
    path = tmp_path / "training.pt"
    torch.save({"format": FORMAT, "trained": {"model": torch.zeros(2000)}}, path)
    content = path.read_bytes()
    for length in range(1, len(content), 500):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"training\.pt is damaged"):
            load_state(path, SMALL, OPTIONS.fixed())


def test_run_with_other_options_is_not_resumed(shapes_root, tmp_path):
    train(
        small_model(SMALL),
        FirstSamples(shapes_root, 4),
        FirstSamples(shapes_root, 4),
        tmp_path,
        TrainingOptions(1, 4),
    )
    with pytest.raises(UserError, match="epochs was 1"):
        load_state(tmp_path / "training.pt", SMALL, TrainingOptions(2, 4).fixed())
    with pytest.raises(UserError, match="another model config"):
        load_state(tmp_path / "training.pt", preset("tiny"), TrainingOptions(1, 4).fixed())


def test_state_of_version_0_1_is_resumed(tmp_path):
    """Its options have the names `rate` and `sentences`, and no `split_by`."""
    old = OPTIONS.fixed()
    old |= {"rate": old.pop("lr"), "sentences": old.pop("expressions")}
    del old["split_by"]
    state = {"config": SMALL.to_json(), "options": old, "step": 3, "validated": 1, "best": 0.5, "skipped": 0}
    path = tmp_path / "training.pt"
    torch.save({"format": "tfanet-training-2", **state, "trained": {}, "rng": [], "cuda_rng": []}, path)
    assert load_state(path, SMALL, OPTIONS.fixed()).step == 3
    with pytest.raises(UserError, match=r"with other options: lr was 0\.001$"):
        load_state(path, SMALL, replace(OPTIONS, lr=2e-3).fixed())
    with pytest.raises(UserError, match=r"with other options: expressions was one$"):
        load_state(path, SMALL, replace(OPTIONS, expressions="all").fixed())


def test_learning_rate_schedule():
    lrs = [lr_factor(step, 100, 10, 50) for step in range(100)]
    assert lrs[0] == pytest.approx(0.1)
    assert lrs[9:51] == [1.0] * 42
    assert lrs[75] == pytest.approx(0.5)
    assert lrs[99] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("name", "tokens"), [("paper-refcoco", 17), ("paper-refcoco+", 17), ("paper-gref", 22)]
)
def test_paper_recipe(name, tokens):
    """Section 4.1: 480 x 480, 17 or 22 tokens, 50 epochs, decay from 25, batch 8."""
    recipe = RECIPES[name]
    assert recipe.token_length == tokens
    assert preset(recipe.preset).image_size == 480
    assert (recipe.options.epochs, recipe.options.batch) == (50, 8)
    assert recipe.options.decay_from is None  # half of the epochs
    assert recipe.options == TrainingOptions(skip_nonfinite=20, skip_broken=100)


def test_epoch_batches_are_a_permutation_and_continue():
    references = [[index] for index in range(23)]
    batches = epoch_batches(references, 4, seed=1, epoch=2)
    indices = [index for batch in batches for index in batch]
    assert len(indices) == len(set(indices))
    assert [len(batch) for batch in batches] == [4] * 5
    assert epoch_batches(references, 4, seed=1, epoch=2, start=3) == batches[3:]
    assert epoch_batches(references, 4, seed=1, epoch=3) != batches


def test_epoch_has_one_expression_of_each_reference():
    """As LAVT trains: every expression in some epoch, one of each reference per epoch."""
    references = [[0], [1, 2, 3], [4, 5], [6, 7, 8, 9]]
    reference_of = {index: number for number, indices in enumerate(references) for index in indices}
    counts = Counter()
    for epoch in range(300):
        chosen = [index for batch in epoch_batches(references, 2, seed=0, epoch=epoch) for index in batch]
        assert sorted(reference_of[index] for index in chosen) == [0, 1, 2, 3]
        counts.update(chosen)
    for indices in references:
        for index in indices:
            assert counts[index] == pytest.approx(300 / len(indices), rel=0.3)


@pytest.mark.parametrize(("parts", "world"), [(1, 1), (1, 3), (2, 3), (4, 1)])
def test_every_batch_is_divided_among_processes(parts, world):
    batches = epoch_batches([[index] for index in range(40)], 12, seed=0, epoch=0)
    by_rank = [list(rank_batches(batches, parts, rank, world)) for rank in range(world)]
    for i, batch in enumerate(batches):
        pieces = [by_rank[rank][i * parts + part] for part in range(parts) for rank in range(world)]
        assert [index for piece in pieces for index in piece] == batch


def test_parameter_groups_have_their_learning_rate_and_weight_decay(random_model):
    groups = parameter_groups(random_model, 0.01, {"backbone": 1.0, "text": 2.0, "rest": 3.0})
    names = {id(p): name for name, p in random_model.named_parameters()}
    of = {(group["part"], group["weight_decay"]): {names[id(p)] for p in group["params"]} for group in groups}
    assert {key: {name.partition(".")[0] for name in names} for key, names in of.items()} == {
        **{key: {"vmamba"} for key in [("backbone", 0.01), ("backbone", 0.0)]},
        **{key: {"text"} for key in [("text", 0.01), ("text", 0.0)]},
        **{key: {"plus", "fusion", "decoder"} for key in [("rest", 0.01), ("rest", 0.0)]},
    }
    assert {group["part"]: group["peak"] for group in groups} == {"backbone": 1.0, "text": 2.0, "rest": 3.0}
    block = "vmamba.layers.0.blocks.0"
    assert {f"{block}.op.A_logs", f"{block}.op.Ds", f"{block}.norm.weight"} <= of["backbone", 0.0]
    assert "text.tower.token_embedding.weight" in of["text", 0.0]
    assert "decoder.alpha" in of["rest", 0.0]
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])
    assert sum(len(group) for group in of.values()) == len(names)


def test_loss_by_hand():
    """Logits 0, one of four pixels true: BCE = ln 2 (3*0.9 + 1.1)/4, dice = 1 - (2*0.5+1)/(2+1+1)."""
    loss = segmentation_loss(torch.zeros(1, 2, 2), torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8))
    assert loss.bce.item() == pytest.approx(0.6931472 * 3.8 / 4)
    assert loss.dice.item() == pytest.approx(0.5)
    assert loss.total.item() == pytest.approx(loss.bce.item() + loss.dice.item())
