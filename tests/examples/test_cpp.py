"""The C++ example: compiled with TensorRT's headers if installed, and run with a fake TensorRT."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_engines import CONFIG, write_sidecar

from tfanet.data.images import open_image
from tfanet.data.preprocess import resize_image, tokenize

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cpp"
FAKE = Path(__file__).parent / "fake_tensorrt"
PHOTO = ROOT / "tests" / "photos" / "grace_hopper.jpg"
INCLUDE_FOLDERS = (
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/tensorrt/include",
)
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror")


@pytest.fixture(scope="module")
def compiler() -> str:
    path = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not path:
        pytest.skip("no C++ compiler")
    return path


@pytest.fixture(scope="module")
def cuda_headers() -> Path:
    """CUDA's headers, from Triton's wheel."""
    triton = pytest.importorskip("triton", reason="Triton, whose wheel has CUDA's headers, is not installed")
    return Path(triton.__file__).parent / "backends" / "nvidia" / "include"


def test_example_compiles_with_tensorrts_headers(compiler, cuda_headers):
    """Set TENSORRT_INCLUDE to the folder of NvInferRuntime.h if it is not in `INCLUDE_FOLDERS`."""
    folders = [Path(folder) for folder in (os.environ.get("TENSORRT_INCLUDE"), *INCLUDE_FOLDERS) if folder]
    headers = next((folder for folder in folders if (folder / "NvInferRuntime.h").is_file()), None)
    if headers is None:
        pytest.skip("TensorRT's C++ headers are not installed, and the public index has none")
    includes = ["-isystem", headers, "-isystem", cuda_headers]
    source = EXAMPLE / "find_object.cpp"
    done = subprocess.run([compiler, *WARNINGS, "-fsyntax-only", *includes, source], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
def find_object(compiler, cuda_headers, tmp_path_factory):
    """`find_object(*arguments)`: the example with the fake; a memory error or leak ends it."""
    program = tmp_path_factory.mktemp("cpp") / "find_object"
    includes = ["-I", FAKE, "-isystem", cuda_headers]
    sources = [EXAMPLE / "find_object.cpp", FAKE / "fake_tensorrt.cpp"]
    checks = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    done = subprocess.run(
        [compiler, *WARNINGS, *checks, *includes, *sources, "-o", program], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()

    def run(*arguments):
        return subprocess.run([program, *arguments], capture_output=True, text=True)

    return run


@pytest.fixture
def plan(tmp_path) -> Path:
    """A plan of the fake, with its sidecar."""
    path = tmp_path / "small.plan"
    path.write_text(f"{CONFIG.image_size} {CONFIG.token_length}")
    write_sidecar(
        path, kind="plan", compute_capabilities=["8.9"], builder="tensorrt", builder_version="10.13.3.9"
    )
    return path


def prepare(*arguments):
    return subprocess.run(
        [sys.executable, EXAMPLE / "prepare.py", *arguments], capture_output=True, text=True
    )


def test_image_and_expression_give_the_mask(find_object, plan, tmp_path):
    done = prepare(plan, PHOTO, "the cap", "-o", tmp_path / "hopper")
    assert done.returncode == 0, done.stderr
    mask = tmp_path / "mask.pgm"
    done = find_object(plan, tmp_path / "hopper.ppm", tmp_path / "hopper.tokens", mask)
    assert done.returncode == 0, done.stderr
    image = resize_image(open_image(PHOTO), CONFIG.image_size)
    (tokens,) = tokenize(["the cap"], CONFIG.token_length)
    expected = image.astype(np.float32).sum(-1) / np.float32(3) - tokens.sum() % 256 > 0
    assert 0.05 < expected.mean() < 0.95
    with Image.open(mask) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), np.where(expected, 255, 0))
    assert done.stdout == f"{expected.sum()} pixels in the mask; wrote {mask}\n"


INVALID = [
    pytest.param({"plan": None}, "cannot read", id="no-plan"),
    pytest.param({"plan": b"not a plan"}, "is not a plan for this TensorRT and GPU", id="not-a-plan"),
    pytest.param({"ppm": None}, "is not an 8-bit binary PPM", id="no-image"),
    pytest.param({"ppm": b"P5\n32 32\n255\n"}, "is not an 8-bit binary PPM", id="grey"),
    pytest.param({"ppm": b"P6\n32 32\n65535\n"}, "is not an 8-bit binary PPM", id="16-bit"),
    pytest.param({"ppm": b"P6\n16 32\n255\n"}, "is not 32 x 32: use prepare.py", id="another-size"),
    pytest.param({"ppm": b"P6\n32 32\n255\n123"}, "is truncated", id="truncated"),
    pytest.param({"tokens": b"49406 736 49407"}, "does not have 5 tokens", id="few-tokens"),
    pytest.param({"tokens": b"1 2 3 4 5 6"}, "does not have 5 tokens", id="many-tokens"),
    pytest.param({"tokens": b"1 2 three 4 5"}, "does not have 5 tokens", id="a-word"),
    pytest.param({"mask": "none/mask.pgm"}, "cannot write", id="no-folder"),
]


@pytest.mark.parametrize(("change", "message"), INVALID)
def test_error_is_one_line_and_exit_code_2(find_object, tmp_path, change, message):
    content = {"plan": b"32 5", "ppm": b"P6\n32 32\n255\n" + bytes(32 * 32 * 3), "tokens": b"1 2 3 4 5\n"}
    for name, data in (content | change).items():
        if name != "mask" and data is not None:
            (tmp_path / name).write_bytes(data)
    files = [tmp_path / name for name in ("plan", "ppm", "tokens", change.get("mask", "mask.pgm"))]
    done = find_object(*files)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.startswith("TensorRT: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert "not for the user" not in done.stderr


def test_usage_without_arguments(find_object):
    done = find_object()
    assert (done.returncode, done.stderr) == (
        2,
        "error: usage: find_object PLAN IMAGE.ppm IMAGE.tokens MASK.pgm\n",
    )


def test_prepare_rejects_too_long_expression(plan, tmp_path):
    done = prepare(plan, PHOTO, "the red mug on the left", "-o", tmp_path / "hopper")
    assert done.returncode == 2
    assert "has 8 tokens, the model takes 5" in done.stderr
    assert not (tmp_path / "hopper.ppm").exists()
