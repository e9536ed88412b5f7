"""`tfanet-train` and `run_training`: options, recipes, resumption, and mistakes that end in one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import losses
from typer.testing import CliRunner

import tfanet
from tfanet.checkpoint import save_model
from tfanet.config import preset
from tfanet.data.packed import pack
from tfanet.data.refer import ReferDataset, ReferFiles
from tfanet.errors import UserError
from tfanet.training.cli import app
from tfanet.training.options import find_recipe
from tfanet.training.request import TrainingRequest, _default_recipe, _model_config
from tfanet.training.run import evaluation_command, resume_command, run_training

pytestmark = pytest.mark.integration


def test_command_line(shapes_root, tmp_path):
    arguments = ["--data", str(shapes_root), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch", "4"]
    arguments += ["--limit", "4", "--validate", "4"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    stored = tmp_path / "run" / "model.safetensors"
    assert f"next: tfanet-eval --engine {stored} --data {shapes_root}\n" in result.output
    assert re.match(
        r"on (cpu, scans (vectorised|compiled)|cuda, scans by \w+)$", result.output.splitlines()[1]
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


@pytest.mark.parametrize(
    ("arguments", "command"),
    [(None, 'resume="auto"'), (["--epochs", "1"], "tfanet-train --epochs 1 --resume auto")],
    ids=["python", "command"],
)
def test_a_stopped_run_returns_false_and_prints_how_to_resume(
    shapes_root, tmp_path, monkeypatch, capsys, arguments, command
):
    monkeypatch.setattr("tfanet.training.run.train", lambda *arguments, **options: False)
    request = TrainingRequest(out=tmp_path, image_size=32, data=shapes_root, limit=4, validate=2)
    assert run_training(request, arguments) is False
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"stopped; the state is saved. Resume with: {command}"
    assert not [line for line in lines if line.startswith(("wrote", "next"))]


@pytest.mark.parametrize(
    ("preset_name", "dataset", "recipe"),
    [
        (None, None, "tiny"),
        (None, "refcocog", "tiny"),
        ("tiny", "refcocog", "tiny"),
        ("base", None, "paper-refcoco"),
        ("base", "refcoco", "paper-refcoco"),
        ("base", "refcoco+", "paper-refcoco+"),
        ("base", "refcocog", "paper-gref"),
    ],
)
def test_default_recipe_depends_on_preset_and_dataset(preset_name, dataset, recipe):
    assert _default_recipe(TrainingRequest(preset=preset_name, dataset=dataset)) == recipe


@pytest.mark.parametrize(
    ("given", "dataset", "length"),
    [(None, "refcoco", 17), (None, "refcoco+", 17), (None, "refcocog", 22), (9, "refcocog", 9)],
)
def test_token_length_depends_on_the_dataset(given, dataset, length):
    request = TrainingRequest(token_length=given)
    assert _model_config(request, find_recipe("tiny"), dataset).token_length == length


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
