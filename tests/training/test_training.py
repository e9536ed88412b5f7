"""Training: the loss falls, a run resumes to the same weights, mistakes end in one line; the command line."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import SMALLEST, log_rows, losses, small_model
from torch.utils.data import ConcatDataset, Dataset
from typer.testing import CliRunner

import tfanet
from tfanet.checkpoint import save_model
from tfanet.config import preset
from tfanet.data.packed import pack
from tfanet.data.refer import ReferDataset, ReferFiles
from tfanet.data.transforms import TrainingPairs
from tfanet.errors import UserError, VerificationError
from tfanet.training.cli import app
from tfanet.training.loop import train
from tfanet.training.losses import segmentation_loss
from tfanet.training.options import RECIPES, TrainingOptions
from tfanet.training.run import TrainingRequest, evaluation_command, resume_command, run_training
from tfanet.training.schedule import epoch_batches, lr_factor, parameter_groups, rank_batches
from tfanet.training.state import FORMAT, load_state

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


def test_command_line(shapes_root, tmp_path):
    arguments = ["--data", str(shapes_root), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch", "4"]
    arguments += ["--limit", "4", "--validate", "4"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    stored = tmp_path / "run" / "model.safetensors"
    assert f"next: tfanet-eval --engine {stored} --data {shapes_root}\n" in result.output
    assert re.match(
        r"on (cpu, scans (vectorised|compiled)|cuda, scans by \w+, )", result.output.splitlines()[1]
    )
    assert tfanet.load_model(tmp_path / "run" / "model.safetensors").config == preset("tiny")
    with pytest.raises(UserError, match="contains a run already; resume it"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    with pytest.raises(UserError, match="with other options: data was refcoco"):
        CliRunner().invoke(app, [*arguments, "--resume", "auto", "--limit", "8"], catch_exceptions=False)
    with pytest.raises(UserError, match="half_weights was False"):
        CliRunner().invoke(app, [*arguments, "--resume", "auto", "--half-weights"], catch_exceptions=False)


def test_help_shows_the_defaults_of_recipes():
    output = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for default in ("[runs/RECIPE]", "[paper: 480]", "[paper: 17; 22 for refcocog]", "[0.5; tiny: 1]"):
        assert default in output


def test_deprecated_options_set_the_present_ones(monkeypatch):
    requests = []
    monkeypatch.setattr(
        "tfanet.training.run.run_training", lambda request, arguments: requests.append(request)
    )
    result = CliRunner().invoke(app, ["--rate", "0.5", "--sentences", "one"], catch_exceptions=False)
    assert result.stderr.splitlines() == [
        "--rate is deprecated; use --lr",
        "--sentences is deprecated; use --expressions",
    ]
    CliRunner().invoke(app, ["--lr", "0.5", "--expressions", "one"], catch_exceptions=False)
    assert requests[0] == requests[1]
    assert requests[0].options == {"seed": 0, "freeze": (), "lr": 0.5, "expressions": "one"}


def test_run_training_from_python(shapes_root, tmp_path):
    options = {"epochs": 1, "batch": 4, "half_weights": True}
    request = TrainingRequest(
        out=tmp_path, image_size=32, variant="a", data=shapes_root, limit=4, validate=2, options=options
    )
    assert run_training(request)
    assert tfanet.load_model(tmp_path / "model.safetensors").config.image_size == 32
    with pytest.raises(UserError, match="contains a run already"):
        run_training(request)


def test_command_line_with_image_size_and_variant(shapes_root, tmp_path):
    arguments = ["--data", str(shapes_root), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch", "4"]
    arguments += ["--limit", "4", "--validate", "4", "--image-size", "64", "--variant", "b"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    trained = tfanet.load_model(tmp_path / "run" / "model.safetensors").config
    assert trained == preset("tiny", image_size=64, variant="b")
    assert trained.alignment == "none"


def test_command_line_starts_from_given_weights(shapes_root, tmp_path):
    start = tmp_path / "start.safetensors"
    save_model(tfanet.build_model("tiny", variant="b"), start, dtype=torch.float16)
    arguments = ["--data", str(shapes_root), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch", "4"]
    arguments += [
        "--limit",
        "4",
        "--validate",
        "4",
        "--image-size",
        "32",
        "--lr",
        "0",
        "--start",
        str(start),
    ]
    CliRunner().invoke(app, [*arguments, "--variant", "b"], catch_exceptions=False)
    initial = dict(tfanet.load_model(start).named_parameters())
    for name, parameter in tfanet.load_model(tmp_path / "run" / "model.safetensors").named_parameters():
        assert torch.equal(parameter, initial[name]), name
    with pytest.raises(UserError, match=r"start.safetensors is a model of other sizes"):
        CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "other")], catch_exceptions=False)


def test_command_line_trains_one_expression_per_reference_from_images_or_a_cache(shapes_root, tmp_path):
    root, out = tmp_path / "set", tmp_path / "run"
    shutil.copytree(shapes_root, root)
    references = len({pair.ref_id for pair in ReferDataset(root, "refcoco", "train")})
    arguments = ["--data", str(root), "--out", str(out), "--epochs", "1", "--batch", "4", "--validate", "4"]
    arguments += ["--image-size", "32", "--expressions", "one", "--variant", "a"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert len(losses(out)) == references // 4
    cached = ["--cache", str(tmp_path / "packed"), "--out", str(tmp_path / "cached")]
    pack(ReferFiles.load(root), 32, tmp_path / "packed")
    result = CliRunner().invoke(app, [*arguments, *cached], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert losses(tmp_path / "cached") == losses(out)
    with pytest.raises(UserError, match="images of 32 x 32, not 64; make a new one: tfanet-data pack"):
        CliRunner().invoke(
            app, [*arguments, *cached, "--out", str(tmp_path / "two"), "--image-size", "64"],
            catch_exceptions=False,
        )  # fmt: skip
    ReferDataset(root, "refcoco", "testA")[0].image_path.unlink()
    with pytest.raises(UserError, match=r"images are missing: testA \(1, of \d expressions\)"):
        CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "two")], catch_exceptions=False)


def test_next_command_is_for_the_same_data():
    command = evaluation_command(Path("runs/my run"), None, "refcocog", "umd")
    assert command == "tfanet-eval --engine 'runs/my run/model.safetensors' --dataset refcocog"
    command = evaluation_command(Path("run"), Path("d"), "refcoco", "google")
    assert command == "tfanet-eval --engine run/model.safetensors --data d --split-by google"


@pytest.mark.parametrize(
    ("world", "local_world", "expected"),
    [
        (1, None, "tfanet-train --data 'my data' --lr 1 --resume auto"),
        (
            2,
            "2",
            "torchrun --nproc-per-node 2 --no-python tfanet-train --data 'my data' --lr 1 --resume auto",
        ),
        (4, "2", "torchrun --nnodes 2 [the same rendezvous] --nproc-per-node 2 --no-python tfanet-train"),
    ],
)
def test_resume_command(monkeypatch, world, local_world, expected):
    if local_world:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world)
    arguments = ["--data", "my data", "--resume", "old.pt", "--lr", "1", "--resume=auto"]
    assert resume_command(world, arguments).startswith(expected)


def test_command_line_trains_with_the_given_split_and_resumes_with_no_other(gref_root, tmp_path):
    out = tmp_path / "run"
    arguments = ["--data", str(gref_root), "--dataset", "refcocog", "--out", str(out), "--epochs", "1"]
    arguments += ["--batch", "4", "--limit", "4", "--validate", "2", "--image-size", "32", "--variant", "a"]

    def run(*more):
        result = CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    output = run("--split-by", "google")
    assert f"{out}/model.safetensors --data {gref_root} --dataset refcocog --split-by google\n" in output
    table = (out / "splits.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in table] == ["split", "val"]
    for split_by in ("umd", None):
        more = ["--split-by", split_by] if split_by else []
        with pytest.raises(UserError, match="with other options: split_by was google, data was refcocog"):
            run("--resume", "auto", *more)
    out = tmp_path / "umd"
    output = run("--out", str(out))
    assert f"--data {gref_root} --dataset refcocog\n" in output
    table = (out / "splits.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in table] == ["split", "val", "test"]
    run("--out", str(out), "--resume", "auto", "--split-by", "umd")
    state = torch.load(out / "training.pt", weights_only=True)
    assert state["options"].pop("split_by") == "umd"
    torch.save(state, out / "training.pt")  # as older versions wrote it
    run("--out", str(out), "--resume", "auto")
    with pytest.raises(UserError, match="other options: data was refcocog"):
        run("--out", str(out), "--resume", "auto", "--split-by", "google")


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
        (["--split-by", "google"], r"refs\(google\).p does not exist"),
        (["--limit", "3", "--batch", "4"], "fewer than one batch"),
        (["--out", "file/run"], "cannot write"),
        (["--device", "cuda"], "no CUDA device"),
        (["--device", "foo"], "unknown device 'foo'"),
        (["--token-length", "99"], "token_length must be"),
        (["--preset", "x" * 300], "unknown preset"),
        (["--out", "x" * 300], "cannot write"),
        (["--resume", "nowhere.pt"], "training state nowhere.pt does not exist"),
        (["--recipe", "huge"], "unknown recipe"),
        (["--freeze", "decoder"], "cannot freeze decoder"),
        (["--expressions", "some"], "unknown expressions 'some'; known: one, all"),
        (["--precision", "int8"], "unknown precision"),
        (["--lr", "inf"], "--lr cannot be inf"),
        (["--clip", "0"], "--clip must be above 0, not 0; inf disables clipping"),
        (["--resume", ""], "training state . is a folder"),
        (["--batch", "6", "--accumulate", "4"], "must be a multiple of 4"),
    ],
)
def test_user_errors_are_one_line(shapes_root, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    defaults = {"--data": str(shapes_root), "--out": "run"}
    for name, value in defaults.items():
        if name not in arguments:
            arguments = [*arguments, name, value]
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
