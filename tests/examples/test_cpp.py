"""The C++ example: compiled with TensorRT's headers where they are, and run over a played TensorRT."""

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

from tfanet.data.transforms import open_image, resize_image, tokenize

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cpp"
STAND_IN = Path(__file__).parent / "stand_in"
PHOTO = ROOT / "tests" / "photos" / "grace_hopper.jpg"
PLACES = (
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/tensorrt/include",
)
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror")


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not found:
        pytest.skip("no C++ compiler")
    return found


@pytest.fixture(scope="module")
def cuda_headers() -> Path:
    """CUDA's headers, which Triton's wheel carries whole."""
    triton = pytest.importorskip("triton", reason="Triton, whose wheel has CUDA's headers, is not installed")
    return Path(triton.__file__).parent / "backends" / "nvidia" / "include"


def test_it_compiles_with_tensorrts_own_headers(compiler, cuda_headers):
    """Set TENSORRT_INCLUDE to the folder of NvInferRuntime.h where it is in none of the usual places."""
    places = [Path(place) for place in (os.environ.get("TENSORRT_INCLUDE"), *PLACES) if place]
    found = next((place for place in places if (place / "NvInferRuntime.h").is_file()), None)
    if found is None:
        pytest.skip("TensorRT's C++ headers are not installed, and the public index has none")
    includes = ["-isystem", found, "-isystem", cuda_headers]
    source = EXAMPLE / "find_object.cpp"
    done = subprocess.run([compiler, *WARNINGS, "-fsyntax-only", *includes, source], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
def find_object(compiler, cuda_headers, tmp_path_factory):
    """`find_object(*arguments)`: the example over the stand-in; foreign memory and leaks end it."""
    program = tmp_path_factory.mktemp("cpp") / "find_object"
    includes = ["-I", STAND_IN, "-isystem", cuda_headers]
    sources = [EXAMPLE / "find_object.cpp", STAND_IN / "stand_in.cpp"]
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
    """A plan of the stand-in, with its sidecar."""
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


def test_a_picture_and_a_sentence_become_a_mask(find_object, plan, tmp_path):
    done = prepare(plan, PHOTO, "the cap", "-o", tmp_path / "hopper")
    assert done.returncode == 0, done.stderr
    mask = tmp_path / "mask.pgm"
    done = find_object(plan, tmp_path / "hopper.ppm", tmp_path / "hopper.tokens", mask)
    assert done.returncode == 0, done.stderr
    image = resize_image(open_image(PHOTO), CONFIG.image_size)
    (tokens,) = tokenize(["the cap"], CONFIG.token_length)
    expected = image.astype(np.float32).sum(-1) / np.float32(3) - tokens.sum() % 256 > 0
    assert 0.05 < expected.mean() < 0.95
    with Image.open(mask) as found:
        assert found.mode == "L"
        np.testing.assert_array_equal(np.asarray(found), np.where(expected, 255, 0))
    assert done.stdout == f"{expected.sum()} pixels found; wrote {mask}\n"


REFUSALS = [
    pytest.param({"plan": None}, "cannot read", id="no-plan"),
    pytest.param({"plan": b"not a plan"}, "does not fit this TensorRT or GPU", id="no-plan-at-all"),
    pytest.param({"ppm": None}, "is no binary PPM of 8 bits", id="no-picture"),
    pytest.param({"ppm": b"P5\n32 32\n255\n"}, "is no binary PPM of 8 bits", id="grey"),
    pytest.param({"ppm": b"P6\n32 32\n65535\n"}, "is no binary PPM of 8 bits", id="16-bit"),
    pytest.param({"ppm": b"P6\n16 32\n255\n"}, "is not 32 x 32: use prepare.py", id="another-size"),
    pytest.param({"ppm": b"P6\n32 32\n255\n123"}, "is truncated", id="truncated"),
    pytest.param({"tokens": b"49406 736 49407"}, "does not hold 5 tokens", id="few-tokens"),
    pytest.param({"tokens": b"1 2 3 4 5 6"}, "does not hold 5 tokens", id="many-tokens"),
    pytest.param({"tokens": b"1 2 three 4 5"}, "does not hold 5 tokens", id="a-word"),
    pytest.param({"mask": "none/mask.pgm"}, "cannot write", id="no-folder"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_a_mistake_is_one_line_and_exit_2(find_object, tmp_path, change, message):
    content = {"plan": b"32 5", "ppm": b"P6\n32 32\n255\n" + bytes(32 * 32 * 3), "tokens": b"1 2 3 4 5\n"}
    for name, data in (content | change).items():
        if name != "mask" and data is not None:
            (tmp_path / name).write_bytes(data)
    files = [tmp_path / name for name in ("plan", "ppm", "tokens", change.get("mask", "mask.pgm"))]
    done = find_object(*files)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("TensorRT: ")]
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert message in said[0]
    assert "not for the user" not in done.stderr


def test_without_arguments_it_says_how_it_is_called(find_object):
    done = find_object()
    assert (done.returncode, done.stderr) == (
        2,
        "error: usage: find_object PLAN PICTURE.ppm PICTURE.tokens MASK.pgm\n",
    )


def test_a_sentence_that_is_too_long_is_refused_when_it_is_prepared(plan, tmp_path):
    done = prepare(plan, PHOTO, "the red mug on the left", "-o", tmp_path / "hopper")
    assert done.returncode == 2
    assert "has 8 tokens, the model takes 5" in done.stderr
    assert not (tmp_path / "hopper.ppm").exists()
