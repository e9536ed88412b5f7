"""The model that clients of a Triton server call: its masks are `tfanet-predict`'s, its refusals one line."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tfanet.data.images import open_image
from tfanet_engines import open_engine
from tfanet_eval.prediction import predict
from tfanet_export.triton_server.repository import write_repository

HERE = Path(__file__).parent
PHOTO = HERE.parent / "photos" / "grace_hopper.jpg"
INVALID_ARG = 3
BOTH = ["mask", "mask_logits"]


def text(sentence: str | bytes) -> np.ndarray:
    return np.array([sentence.encode() if isinstance(sentence, str) else sentence], dtype=object)


def bytes_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


def serve(repository: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, HERE / "serve.py", repository], input=pickle.dumps(requests), stdout=subprocess.PIPE
    )
    assert done.returncode == 0
    return pickle.loads(done.stdout)


def pictures(folder: Path) -> list[Path]:
    """Files that Pillow reads in different ways, of different sizes."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    colour = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = colour.convert("RGBA")
    clear.putalpha(Image.fromarray(pixels[..., 0]))
    colour.save(folder / "turned.jpg", exif=turned)
    clear.save(folder / "clear.png")
    colour.quantize(16).save(folder / "palette.gif")
    Image.fromarray(pixels[..., 1].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.new("RGB", (1, 1), (200, 200, 200)).save(folder / "dot.bmp")
    return [PHOTO, *sorted(path for path in folder.iterdir() if path.is_file())]


@pytest.mark.parametrize("engine", ["small", "exported"])
def test_masks_are_those_of_predict(engine, small_engine, request, tmp_path):
    path = small_engine if engine == "small" else request.getfixturevalue("exported")["fp32"].path
    write_repository(tmp_path / "repository", [path], name="finder")
    (tmp_path / "pictures").mkdir()
    files = pictures(tmp_path / "pictures")
    sentences = ["red mug", "  A MUG’s\t", "café"]
    cases = [(file, sentences[i % 3]) for i, file in enumerate(files)]
    requests = [
        {"inputs": {"image_file": bytes_of(file.read_bytes()), "sentence": text(sentence)}, "outputs": BOTH}
        for file, sentence in cases
    ]
    requests += [
        {"inputs": {"image": np.asarray(open_image(file)), "sentence": text(sentence)}, "outputs": BOTH}
        for file, sentence in cases
    ]
    answers = serve(tmp_path / "repository", requests)
    with open_engine(path, providers=["CPUExecutionProvider"], threads=1, native=False) as opened:
        expected = [predict(opened, open_image(file), sentence) for file, sentence in cases] * 2
    for answer, logits in zip(answers, expected, strict=True):
        assert answer["error"] is None
        found = answer["outputs"]
        assert [found[name].dtype.name for name in BOTH] == ["uint8", "float32"]
        np.testing.assert_array_equal(found["mask_logits"], logits)
        np.testing.assert_array_equal(found["mask"], np.where(logits > 0, 255, 0))
    values, marked = (
        np.concatenate([answer["outputs"][name].ravel() for answer in answers])
        for name in ("mask_logits", "mask")
    )
    assert len(np.unique(values)) > 1000 if engine == "exported" else set(np.unique(marked)) == {0, 255}


PNG = io.BytesIO()
Image.effect_noise((40, 30), 90).save(PNG, "png")
PIXELS = np.zeros((3, 4, 3), dtype=np.uint8)
FILE = bytes_of(PNG.getvalue())
REFUSALS = [
    pytest.param({"sentence": text("mug")}, "give image_file", id="no-picture"),
    pytest.param(
        {"image_file": FILE, "image": PIXELS, "sentence": text("mug")}, "one of them", id="two-pictures"
    ),
    pytest.param(
        {"image_file": bytes_of(b"no picture"), "sentence": text("mug")},
        "image_file is not an image that Pillow can read",
        id="no-image",
    ),
    pytest.param(
        {"image_file": FILE[: FILE.size // 2], "sentence": text("mug")},
        "image image_file is damaged",
        id="truncated",
    ),
    pytest.param(
        {"image_file": FILE[:0], "sentence": text("mug")}, "image_file is not an image", id="empty-file"
    ),
    pytest.param({"image": PIXELS[:0], "sentence": text("mug")}, "no pixels", id="no-pixels"),
    pytest.param({"image": PIXELS, "sentence": text(" \t")}, "expression is empty", id="blank-sentence"),
    pytest.param(
        {"image": PIXELS, "sentence": text("red mug on the left")},
        "has 7 tokens, the model takes 5",
        id="long-sentence",
    ),
    pytest.param(
        {"image": PIXELS, "sentence": text("a" * 5000)}, "5000 bytes, more than 4096", id="huge-sentence"
    ),
    pytest.param({"image": PIXELS, "sentence": text(b"\xff\xfe")}, "is not UTF-8", id="not-text"),
]


@pytest.fixture
def small_repository(small_engine, tmp_path):
    return write_repository(tmp_path / "repository", [small_engine]).path


def test_a_clients_mistake_is_its_own_and_one_line(small_repository):
    requests = [{"inputs": case.values[0], "outputs": ["mask"]} for case in REFUSALS]
    for case, answer in zip(REFUSALS, serve(small_repository, requests), strict=True):
        message, code = answer["error"]
        assert case.values[1] in message, case.id
        assert "\n" not in message, case.id
        assert code == INVALID_ARG, case.id
        assert answer["outputs"] == {}, case.id


def test_only_what_is_asked_for_is_sent_and_the_core_models_failures_are_passed_on(small_repository):
    given = {"inputs": {"image": PIXELS, "sentence": text("mug")}, "outputs": ["mask"]}
    works, fails, nan = serve(small_repository, [given, given | {"core": "fails"}, given | {"core": "nan"}])
    assert works["outputs"].keys() == {"mask"}
    assert fails["error"] == ("tfanet_core failed: out of memory", 1)
    assert nan["error"] == ("tfanet_core gives logits that are NaN or infinite", 1)
