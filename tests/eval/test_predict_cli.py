"""`tfanet-predict`: what it writes and says, and how it refuses."""

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
from tfanet_eval.cli.predict import describe, main
from tfanet_eval.prediction import predict, spread


def save_image(path, width=90, height=70, **options):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2] = (255, 0, 0)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    save_image(path)
    return path


@pytest.fixture
def engine(monkeypatch):
    """An engine that finds red, opened in the place of any other."""
    from contextlib import nullcontext

    monkeypatch.setattr(
        "tfanet_engines.open_engine", lambda path, trust: nullcontext(FakeEngine(oracle)), raising=False
    )


def test_overlay_and_mask_have_the_pictures_size(command, engine, picture):
    done = command(main, picture, "the red half", "-o", "found/out.jpg")
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


def test_exif_orientation_is_honoured(command, engine, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "turned.jpg", exif=exif)
    assert command(main, tmp_path / "turned.jpg", "red").code == 0
    with Image.open("out.png") as overlay, Image.open("out.mask.png") as mask:
        assert overlay.size == mask.size == (70, 90)
        assert np.asarray(mask)[10, 35] == 255
        assert np.asarray(mask)[80, 35] == 0


def test_without_arguments_a_synthetic_pair_goes_through_the_real_model(command, checkpoint):
    done = command(main, "--engine", checkpoint)
    assert done.code == 0, done.err
    with Image.open("out.mask.png") as mask:
        assert f"{mask.width} x {mask.height} pixels" in done.out


def test_maps_are_one_more_picture_and_change_nothing_else(command, picture, checkpoint):
    assert command(main, picture, "the red half", "--engine", checkpoint).code == 0
    plain = {name: Path(name).read_bytes() for name in ("out.png", "out.mask.png")}
    done = command(main, picture, "the red half", "--engine", checkpoint, "--maps", "inside/maps.png")
    assert done.code == 0, done.err
    assert "wrote inside/maps.png\n" in done.out
    assert {name: Path(name).read_bytes() for name in plain} == plain
    with Image.open("inside/maps.png") as maps:
        assert maps.width > maps.height > 600


def test_maps_of_a_variant_say_what_it_has_not(command, picture, tmp_path):
    torch.manual_seed(0)
    save_model(tfanet.build_model("tiny", decoder="conv"), tmp_path / "d.safetensors")
    done = command(main, picture, "red", "--engine", "d.safetensors", "--maps", "maps.png")
    assert done.code == 0, done.err
    assert "wrote maps.png, without M_1 to M_4 (it has no WFDM)" in done.out


@pytest.mark.parametrize("known", [True, False], ids=["of-the-bundled-checkpoint", "of-another"])
@pytest.mark.parametrize("name", ["model.onnx", "model.plan"])
def test_maps_of_a_deployed_model_name_the_checkpoint_before_any_work(
    command, picture, monkeypatch, tmp_path, name, known
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
    done = command(main, picture, "red", "--engine", name, "--maps", "maps.png")
    assert done.code == 2
    assert done.err.strip().count("\n") == 0
    assert f"--maps looks inside the PyTorch model, which {name} is no longer" in done.err
    assert (
        f"give --engine {bundled('tiny')}" if known else "the .safetensors that it was made of"
    ) in done.err
    assert not Path("maps.png").exists()
    assert not Path("out.png").exists()


REFUSALS = [
    pytest.param(["none.jpg", "red"], "none.jpg does not exist", id="no-picture"),
    pytest.param(["corrupt.png", "red"], "corrupt.png", id="corrupt"),
    pytest.param(["truncated.jpg", "red"], "truncated.jpg", id="truncated"),
    pytest.param([".", "red"], "folder", id="a-folder"),
    pytest.param(["picture.png"], "say what to find", id="no-sentence"),
    pytest.param(["picture.png", ""], "sentence is empty", id="empty-sentence"),
    pytest.param(["picture.png", " \t"], "sentence is empty", id="blank-sentence"),
    pytest.param(["picture.png", "red " * 40], "42 tokens, the model takes 17", id="long-sentence"),
    pytest.param(["picture.png", "red", "-o", "out.txt"], "must end in .png", id="no-picture-name"),
    pytest.param(["picture.png", "red", "-o", "out"], "must end in .png", id="no-suffix"),
    pytest.param(["picture.png", "red", "-o", "picture.png"], "overwritten", id="over-the-picture"),
    pytest.param(["a.mask.png", "red", "-o", "a.png"], "overwritten", id="mask-over-the-picture"),
    pytest.param(["picture.png", "red", "-o", "picture.png/out.png"], "cannot write", id="unwritable"),
    pytest.param(["picture.png", "red", "--maps", "m.txt"], "must end in .png", id="maps-no-picture-name"),
    pytest.param(
        ["picture.png", "red", "--maps", "picture.png"], "another --maps", id="maps-over-the-picture"
    ),
    pytest.param(
        ["picture.png", "red", "--maps", "out.png"], "--output out.png writes", id="maps-over-overlay"
    ),
    pytest.param(["picture.png", "red", "--maps", "out.mask.png"], "another --maps", id="maps-over-the-mask"),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSALS)
def test_a_mistake_is_one_line_exit_2_and_no_output(command, engine, picture, arguments, named):
    folder = picture.parent
    (folder / "corrupt.png").write_bytes(b"no picture")
    save_image(folder / "whole.jpg", 300, 300)
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:800])
    (folder / "a.mask.png").write_bytes(picture.read_bytes())
    before = {file: file.read_bytes() for file in folder.iterdir()}
    done = command(main, *arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.strip().count("\n") == 0
    assert named in done.err
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["model.pt", "model.onnx", "model.safetensors", "model.plan"])
def test_an_engine_that_is_none_is_refused(command, picture, tmp_path, name):
    (tmp_path / name).write_bytes(b"no model")
    done = command(main, picture, "red", "--engine", tmp_path / name)
    assert done.code == 2
    assert name in done.err
    assert done.err.strip().count("\n") == 0


def test_the_output_is_checked_before_the_model_is_opened(command, picture, monkeypatch):
    def never(path, trust):
        raise AssertionError("the model was opened")

    monkeypatch.setattr("tfanet_engines.open_engine", never, raising=False)
    assert command(main, picture, "red", "-o", "out.txt").code == 2


def test_logits_come_at_the_pictures_own_size():
    logits = predict(FakeEngine(oracle), Image.new("RGB", (31, 57), (255, 0, 0)), "red")
    assert logits.shape == (57, 31)
    assert logits.dtype == np.float32
    assert (logits > 0).all()


def test_a_sentence_is_never_cut():
    with pytest.raises(UserError, match="tokens"):
        predict(FakeEngine(everything), Image.new("RGB", (SIZE, SIZE)), "red " * 20)


def test_describing_masks():
    mask = np.zeros((4, 10), dtype=bool)
    assert describe(mask) == "nothing found in 10 x 4 pixels"
    mask[1:3, 2:4] = True
    assert describe(mask) == "10.00 % of 10 x 4 pixels, box x 2..3, y 1..2"


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [(10, 2, [2, 7]), (3, 3, [0, 1, 2]), (2, 5, [0, 1]), (100, 4, [12, 37, 62, 87]), (1, 1, [0])],
)
def test_samples_are_spread_evenly(total, count, indices):
    assert list(spread(total, count)) == indices
