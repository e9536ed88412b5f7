"""`tfanet-predict`: the files it writes, its output, and its errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_engines import SIZE, FakeEngine, everything, oracle
from PIL import Image

import tfanet
from tfanet.checkpoint import load_model, save_model, weights_sha256
from tfanet.config import PRESETS
from tfanet.errors import UserError
from tfanet.weights import bundled
from tfanet_engines import Sidecar
from tfanet_eval.cli.predict import main
from tfanet_eval.prediction import describe_mask, evenly_spaced, predict


def save_image(path, width=90, height=70, **options):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2] = (255, 0, 0)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "image.png"
    save_image(path)
    return path


@pytest.fixture
def engine(monkeypatch):
    """`open_engine` opens an engine that predicts the red pixels, whatever the path."""
    from contextlib import nullcontext

    monkeypatch.setattr(
        "tfanet_engines.open_engine", lambda path, trust: nullcontext(FakeEngine(oracle)), raising=False
    )


def test_overlay_and_mask_have_the_images_size(command, engine, image_file):
    done = command(main, image_file, "the red half", "-o", "found/out.jpg")
    assert done.code == 0, done.err
    with Image.open("found/out.jpg") as overlay, Image.open("found/out.mask.png") as mask:
        assert overlay.size == mask.size == (90, 70)
        assert mask.mode == "L"
        values = np.asarray(mask)
    assert set(np.unique(values)) == {0, 255}
    assert (values[:, :44] == 255).all()
    assert (values[:, 46:] == 0).all()
    assert "50.00 % of 90 x 70 pixels, box x 0..44, y 0..69" in done.out
    assert "next: tfanet-eval" in done.out


def test_exif_orientation_is_applied(command, engine, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "rotated.jpg", exif=exif)
    assert command(main, tmp_path / "rotated.jpg", "red").code == 0
    with Image.open("out.png") as overlay, Image.open("out.mask.png") as mask:
        assert overlay.size == mask.size == (70, 90)
        assert np.asarray(mask)[10, 35] == 255
        assert np.asarray(mask)[80, 35] == 0


def test_without_arguments_a_synthetic_pair_is_predicted_by_the_real_model(command, checkpoint):
    done = command(main, "--engine", checkpoint)
    assert done.code == 0, done.err
    with Image.open("out.mask.png") as mask:
        assert f"{mask.width} x {mask.height} pixels" in done.out


def test_maps_are_an_extra_image_and_do_not_change_the_outputs(command, image_file, checkpoint):
    assert command(main, image_file, "the red half", "--engine", checkpoint).code == 0
    outputs = {name: Path(name).read_bytes() for name in ("out.png", "out.mask.png")}
    done = command(main, image_file, "the red half", "--engine", checkpoint, "--maps", "inside/maps.png")
    assert done.code == 0, done.err
    assert "wrote inside/maps.png\n" in done.out
    assert {name: Path(name).read_bytes() for name in outputs} == outputs
    with Image.open("inside/maps.png") as maps:
        assert maps.width > maps.height > 600


def test_maps_of_a_variant_name_its_missing_maps(command, image_file, tmp_path):
    torch.manual_seed(0)
    save_model(tfanet.build_model("tiny", decoder="conv"), tmp_path / "d.safetensors")
    done = command(main, image_file, "red", "--engine", "d.safetensors", "--maps", "maps.png")
    assert done.code == 0, done.err
    assert "wrote maps.png, without M_1 to M_4 (it has no WFDM)" in done.out


@pytest.mark.parametrize("known", [True, False], ids=["bundled-weights", "other-weights"])
@pytest.mark.parametrize("name", ["model.onnx", "model.plan"])
def test_maps_of_a_deployed_model_are_an_error_that_names_the_checkpoint(
    command, image_file, monkeypatch, tmp_path, name, known
):
    monkeypatch.setattr("tfanet_engines.open_engine", lambda path, **_: pytest.fail("opened"), raising=False)
    (tmp_path / name).write_bytes(b"a network")
    if known:
        weights = weights_sha256(load_model(bundled("tiny")))
        Sidecar.of(
            PRESETS["tiny"], kind="plan" if name.endswith("plan") else "onnx", weights_sha256=weights,
            precision="fp32", proof={}, builder="b", builder_version="1", onnx_sha256="", file_sha256="",
            rebuild="make it",
            cost={"seconds": 1.0},
        ).write(tmp_path / name)  # fmt: skip
    done = command(main, image_file, "red", "--engine", name, "--maps", "maps.png")
    assert done.code == 2
    assert done.err.strip().count("\n") == 0
    assert f"--maps needs the PyTorch model, which {name} does not contain" in done.err
    assert (f"give --engine {bundled('tiny')}" if known else "the .safetensors it was made from") in done.err
    assert not Path("maps.png").exists()
    assert not Path("out.png").exists()


ERRORS = [
    pytest.param(["none.jpg", "red"], "none.jpg does not exist", id="missing"),
    pytest.param(["corrupt.png", "red"], "corrupt.png", id="corrupt"),
    pytest.param(["truncated.jpg", "red"], "truncated.jpg", id="truncated"),
    pytest.param([".", "red"], "folder", id="a-folder"),
    pytest.param(["image.png"], "the expression is missing", id="no-expression"),
    pytest.param(["image.png", ""], "expression is empty", id="empty-expression"),
    pytest.param(["image.png", " \t"], "expression is empty", id="blank-expression"),
    pytest.param(["image.png", "red " * 40], "42 tokens, the model takes 17", id="long-expression"),
    pytest.param(["image.png", "red", "-o", "out.txt"], "must end in .png", id="not-an-image-name"),
    pytest.param(["image.png", "red", "-o", "out"], "must end in .png", id="no-suffix"),
    pytest.param(["image.png", "red", "-o", "image.png"], "overwritten", id="over-the-image"),
    pytest.param(["a.mask.png", "red", "-o", "a.png"], "overwritten", id="mask-over-the-image"),
    pytest.param(["image.png", "red", "-o", "image.png/out.png"], "cannot write", id="unwritable"),
    pytest.param(["image.png", "red", "--maps", "m.txt"], "must end in .png", id="maps-not-an-image-name"),
    pytest.param(["image.png", "red", "--maps", "image.png"], "another --maps", id="maps-over-the-image"),
    pytest.param(
        ["image.png", "red", "--maps", "out.png"], "also written by --output out.png", id="maps-over-overlay"
    ),
    pytest.param(["image.png", "red", "--maps", "out.mask.png"], "another --maps", id="maps-over-the-mask"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_error_is_one_line_exit_2_and_no_output(command, engine, image_file, arguments, message):
    folder = image_file.parent
    (folder / "corrupt.png").write_bytes(b"not an image")
    save_image(folder / "full.jpg", 300, 300)
    (folder / "truncated.jpg").write_bytes((folder / "full.jpg").read_bytes()[:800])
    (folder / "a.mask.png").write_bytes(image_file.read_bytes())
    before = {file: file.read_bytes() for file in folder.iterdir()}
    done = command(main, *arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.strip().count("\n") == 0
    assert message in done.err
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["model.pt", "model.onnx", "model.safetensors", "model.plan"])
def test_invalid_engine_is_an_error(command, image_file, tmp_path, name):
    (tmp_path / name).write_bytes(b"not a model")
    done = command(main, image_file, "red", "--engine", tmp_path / name)
    assert done.code == 2
    assert name in done.err
    assert done.err.strip().count("\n") == 0


def test_output_is_checked_before_the_model_is_opened(command, image_file, monkeypatch):
    def never(path, trust):
        raise AssertionError("the model was opened")

    monkeypatch.setattr("tfanet_engines.open_engine", never, raising=False)
    assert command(main, image_file, "red", "-o", "out.txt").code == 2


def test_logits_have_the_images_size():
    logits = predict(FakeEngine(oracle), Image.new("RGB", (31, 57), (255, 0, 0)), "red")
    assert logits.shape == (57, 31)
    assert logits.dtype == np.float32
    assert (logits > 0).all()


def test_long_expression_raises():
    with pytest.raises(UserError, match="tokens"):
        predict(FakeEngine(everything), Image.new("RGB", (SIZE, SIZE)), "red " * 20)


def test_describe_mask():
    mask = np.zeros((4, 10), dtype=bool)
    assert describe_mask(mask) == "nothing found in 10 x 4 pixels"
    mask[1:3, 2:4] = True
    assert describe_mask(mask) == "10.00 % of 10 x 4 pixels, box x 2..3, y 1..2"


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [(10, 2, [2, 7]), (3, 3, [0, 1, 2]), (2, 5, [0, 1]), (100, 4, [12, 37, 62, 87]), (1, 1, [0])],
)
def test_samples_are_evenly_spaced(total, count, indices):
    assert list(evenly_spaced(total, count)) == indices
