"""The Triton model that clients call: its masks equal `tfanet-predict`'s, its errors are one line."""

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

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
PHOTO = HERE.parent / "photos" / "grace_hopper.jpg"
INVALID_ARG = 3
BOTH = ["mask", "mask_logits"]


def text(expression: str | bytes) -> np.ndarray:
    data = expression.encode() if isinstance(expression, str) else expression
    return np.array([data], dtype=object)


def bytes_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


def serve(repository: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, HERE / "serve.py", repository], input=pickle.dumps(requests), stdout=subprocess.PIPE
    )
    assert done.returncode == 0
    return pickle.loads(done.stdout)


def write_images(folder: Path) -> list[Path]:
    """Images in different formats, modes and sizes."""
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
def test_masks_equal_those_of_predict(engine, small_engine, request, tmp_path):
    path = small_engine if engine == "small" else request.getfixturevalue("exported")["fp32"].path
    write_repository(tmp_path / "repository", [path], name="finder")
    (tmp_path / "images").mkdir()
    files = write_images(tmp_path / "images")
    expressions = ["red mug", "  A MUG’s\t", "café"]
    cases = [(file, expressions[i % 3]) for i, file in enumerate(files)]
    requests = [
        {"inputs": {"image_file": bytes_of(file.read_bytes()), "sentence": text(expression)}, "outputs": BOTH}
        for file, expression in cases
    ]
    requests += [
        {"inputs": {"image": np.asarray(open_image(file)), "sentence": text(expression)}, "outputs": BOTH}
        for file, expression in cases
    ]
    responses = serve(tmp_path / "repository", requests)
    with open_engine(path, providers=["CPUExecutionProvider"], threads=1, native=False) as opened:
        expected = [predict(opened, open_image(file), expression) for file, expression in cases] * 2
    for response, logits in zip(responses, expected, strict=True):
        assert response["error"] is None
        outputs = response["outputs"]
        assert [outputs[name].dtype.name for name in BOTH] == ["uint8", "float32"]
        np.testing.assert_array_equal(outputs["mask_logits"], logits)
        np.testing.assert_array_equal(outputs["mask"], np.where(logits > 0, 255, 0))
    logits, masks = (
        np.concatenate([response["outputs"][name].ravel() for response in responses])
        for name in ("mask_logits", "mask")
    )
    assert len(np.unique(logits)) > 1000 if engine == "exported" else set(np.unique(masks)) == {0, 255}


PNG = io.BytesIO()
Image.effect_noise((40, 30), 90).save(PNG, "png")
PIXELS = np.zeros((3, 4, 3), dtype=np.uint8)
FILE = bytes_of(PNG.getvalue())
INVALID_REQUESTS = [
    pytest.param({"sentence": text("mug")}, "give either image_file", id="no-image"),
    pytest.param(
        {"image_file": FILE, "image": PIXELS, "sentence": text("mug")},
        "give either image_file",
        id="two-images",
    ),
    pytest.param(
        {"image_file": bytes_of(b"not an image"), "sentence": text("mug")},
        "image_file is not an image that Pillow can read",
        id="not-an-image",
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
        id="too-many-tokens",
    ),
    pytest.param(
        {"image": PIXELS, "sentence": text("a" * 5000)},
        "expression has 5000 bytes; the limit is 4096",
        id="too-many-bytes",
    ),
    pytest.param({"image": PIXELS, "sentence": text(b"\xff\xfe")}, "expression is not UTF-8", id="not-text"),
]


@pytest.fixture
def small_repository(small_engine, tmp_path):
    return write_repository(tmp_path / "repository", [small_engine]).path


def test_invalid_request_fails_alone_with_one_line(small_repository):
    requests = [{"inputs": case.values[0], "outputs": ["mask"]} for case in INVALID_REQUESTS]
    for case, response in zip(INVALID_REQUESTS, serve(small_repository, requests), strict=True):
        message, code = response["error"]
        assert case.values[1] in message, case.id
        assert "\n" not in message, case.id
        assert code == INVALID_ARG, case.id
        assert response["outputs"] == {}, case.id


def test_only_requested_outputs_are_sent_and_core_model_failures_are_forwarded(small_repository):
    request = {"inputs": {"image": PIXELS, "sentence": text("mug")}, "outputs": ["mask"]}
    works, fails, nan = serve(
        small_repository, [request, request | {"core": "fails"}, request | {"core": "nan"}]
    )
    assert works["outputs"].keys() == {"mask"}
    assert fails["error"] == ("tfanet_core failed: out of memory", 1)
    assert nan["error"] == ("tfanet_core returned logits that are NaN or infinite", 1)
