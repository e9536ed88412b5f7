from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from tfanet.data.images import open_image
from tfanet.data.preprocess import logits_to_size, resize_image, resize_mask, tokenize
from tfanet.data.refer import ReferDataset
from tfanet.data.shapes import write_shapes
from tfanet.data.transforms import TrainingPairs
from tfanet.errors import UserError

SOT, EOT = 49406, 49407


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ReferDataset:
    return ReferDataset(write_shapes(tmp_path_factory.mktemp("data") / "s", counts={"val": 4}))


@pytest.mark.parametrize(
    ("source", "target"),
    [((15, 15), (40, 23)), ((16, 16), (16, 16)), ((32, 32), (9, 50)), ((4, 4), (1, 1)), ((1, 1), (3, 2))],
)
def test_logits_to_size_is_interpolate(source: tuple[int, int], target: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(size=source).astype(np.float32)
    expected = interpolate(torch.from_numpy(logits)[None, None], target, mode="bilinear", align_corners=False)
    resized = logits_to_size(logits, *target)
    assert (resized.dtype, resized.shape) == (np.float32, target)
    np.testing.assert_allclose(resized, expected[0, 0], atol=2e-5)


def test_resize_image_is_antialiased_rgb() -> None:
    chequers = np.indices((64, 64)).sum(0) % 2 * 255
    resized = resize_image(Image.fromarray(chequers.astype(np.uint8)), 8)
    assert (resized.dtype, resized.shape) == (np.uint8, (8, 8, 3))
    assert abs(resized.astype(int) - 127).max() < 8
    assert resized.flags.writeable


def test_resize_image_does_not_keep_the_aspect() -> None:
    image = Image.new("RGB", (90, 30), (255, 0, 0))
    image.paste((0, 0, 255), (45, 0, 90, 30))
    resized = resize_image(image, 32)
    assert (resized[:, :14] == (255, 0, 0)).all()
    assert (resized[:, 18:] == (0, 0, 255)).all()


@pytest.mark.parametrize("size", [5, 16, 40])
def test_resize_mask_stays_binary_and_in_place(size: int) -> None:
    mask = np.zeros((30, 20), dtype=np.uint8)
    mask[:15] = 1
    resized = resize_mask(mask, size)
    assert (resized.dtype, resized.shape) == (np.uint8, (size, size))
    assert set(np.unique(resized)) == {0, 1}
    assert abs(resized[:, 0].mean() - 0.5) <= 0.5 / size + 1e-9


def test_tokens_are_those_of_open_clip() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    texts = ["the small red circle", "Left-most Café!", "", " ".join(["man"] * 40)]
    tokens = tokenize(texts, 17)
    assert tokens.dtype == np.int64
    np.testing.assert_array_equal(tokens, SimpleTokenizer()(texts, 17).numpy())
    assert tokens[2].tolist() == [SOT, EOT] + [0] * 15
    assert tokens[3, -1] == EOT


def test_no_texts_give_no_rows() -> None:
    assert tokenize([], 17).shape == (0, 17)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param(" \t\n", "is empty", id="blank"),
        pytest.param(" ".join(["man"] * 16), "has 18 tokens, the model takes 17", id="one too many"),
    ],
)
def test_strict_tokens(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenize([text], 17, strict=True)


def test_strict_accepts_the_maximum_length() -> None:
    assert tokenize([" ".join(["man"] * 15)], 17, strict=True)[0, -1] == EOT


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_open_image_gives_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"image.{'tiff' if mode == 'CMYK' else 'png'}"
    Image.new(mode, (6, 4)).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (6, 4))


GREYS = [
    pytest.param("uint16", "png", [0, 257, 32896, 65535], [0, 1, 128, 255], id="16-bit PNG"),
    pytest.param("uint16", "png", [0, 1, 100, 255], [0, 0, 0, 0], id="dark 16-bit PNG"),
    pytest.param("uint16", "tiff", [0, 257, 32896, 65535], [0, 1, 128, 255], id="16-bit TIFF"),
    pytest.param(">u2", "tiff", [0, 257, 32896, 65535], [0, 1, 128, 255], id="big-endian TIFF"),
    pytest.param("int32", "tiff", [0, 257, 32896, 65535], [0, 1, 128, 255], id="32-bit TIFF of 16 bits"),
    pytest.param("int32", "tiff", [0, 1, 128, 255], [0, 1, 128, 255], id="32-bit TIFF of 8 bits"),
    pytest.param("float32", "tiff", [0.0, 0.004, 0.5, 1.0], [0, 1, 128, 255], id="fractions"),
    pytest.param("float32", "tiff", [0.0, 1.0, 128.2, 255.0], [0, 1, 128, 255], id="fractions to 255"),
]


@pytest.mark.parametrize(("dtype", "suffix", "stored", "expected"), GREYS)
@pytest.mark.parametrize("upright", [True, False], ids=["upright", "as stored"])
def test_deep_grey_is_scaled(
    tmp_path: Path, dtype: str, suffix: str, stored: list[float], expected: list[int], upright: bool
) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.array([stored]).astype(dtype)).save(path)
    image = np.asarray(open_image(path, upright=upright))
    assert image.shape == (1, 4, 3)
    assert image[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        pytest.param("float32", [0.0, float("nan")], id="NaN"),
        pytest.param("float32", [0.0, float("inf")], id="infinity"),
        pytest.param("float32", [-0.1, 1.0], id="negative fraction"),
        pytest.param("float32", [0.0, 256.0], id="fraction above 255"),
        pytest.param("int32", [-1, 3], id="negative"),
        pytest.param("int32", [0, 65536], id="more than 16 bits"),
    ],
)
def test_grey_outside_the_known_ranges_is_rejected(tmp_path: Path, dtype: str, stored: list[float]) -> None:
    Image.fromarray(np.array([stored], dtype=dtype)).save(tmp_path / "odd.tiff")
    with pytest.raises(UserError, match=r"odd\.tiff has grey values from .* to .*; save it as 8-bit"):
        open_image(tmp_path / "odd.tiff")


def paletted() -> Image.Image:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    return image


def half_transparent(mode: str) -> Image.Image:
    """A transparent black pixel, then an opaque red (or bright) one."""
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        pytest.param(half_transparent("RGBA"), {}, [[255, 255, 255], [255, 0, 0]], id="RGBA"),
        pytest.param(half_transparent("LA"), {}, [[255] * 3, [76] * 3], id="LA"),
        pytest.param(paletted(), {"transparency": 0}, [[255, 255, 255], [255, 0, 0]], id="palette"),
        pytest.param(paletted(), {}, [[0, 0, 0], [255, 0, 0]], id="opaque palette"),
        pytest.param(
            half_transparent("RGB"), {"transparency": (0, 0, 0)}, [[255] * 3, [255, 0, 0]], id="RGB"
        ),
        pytest.param(Image.new("RGBA", (2, 1), (0, 0, 0, 51)), {}, [[204] * 3] * 2, id="partly"),
    ],
)
def test_transparent_images_get_a_white_background(
    tmp_path: Path, image: Image.Image, options: dict[str, object], expected: list[list[int]]
) -> None:
    image.save(tmp_path / "clear.png", **options)
    assert np.asarray(open_image(tmp_path / "clear.png"))[0].tolist() == expected


@pytest.mark.parametrize(("upright", "size"), [(True, (4, 6)), (False, (6, 4))])
def test_exif_orientation(tmp_path: Path, upright: bool, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg", upright=upright).size == size


def jpeg_bytes(folder: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "complete.jpg")
    return (folder / "complete.jpg").read_bytes()


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        pytest.param("cut.jpg", slice(0, 900), "damaged", id="truncated"),
        pytest.param("head.jpg", slice(0, 10), "damaged", id="header only"),
        pytest.param("none.jpg", slice(0, 0), "is empty", id="empty"),
        pytest.param("tail.jpg", slice(300, None), "not an image", id="garbage"),
    ],
)
def test_damaged_images(tmp_path: Path, name: str, part: slice, message: str) -> None:
    (tmp_path / name).write_bytes(jpeg_bytes(tmp_path)[part])
    with pytest.raises(UserError, match=rf"{name} .*{message}"):
        open_image(tmp_path / name)


def test_missing_image_folder_and_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"absent.png does not exist"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(UserError, match="is a folder"):
        open_image(tmp_path)
    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(UserError, match=r"bomb.png is too large"):
        open_image(tmp_path / "bomb.png")


def test_training_pairs(pairs: ReferDataset) -> None:
    training = TrainingPairs(pairs, 64, 17)
    assert len(training) == len(pairs)
    for index, pair in enumerate(pairs):
        for _ in range(2):
            item = training[index]
            assert {name: value.dtype for name, value in item.items()} == {
                "image": torch.uint8,
                "tokens": torch.int64,
                "mask": torch.uint8,
            }
            np.testing.assert_array_equal(item["image"], resize_image(pairs.image(pair), 64))
            np.testing.assert_array_equal(item["mask"], resize_mask(pairs.mask(pair), 64))
            np.testing.assert_array_equal(item["tokens"], tokenize([pair.text], 17)[0])
            item["image"].zero_()
            item["mask"].zero_()


def test_training_pairs_pickle_and_batch(pairs: ReferDataset) -> None:
    training = pickle.loads(pickle.dumps(TrainingPairs(pairs, 32, 17)))
    batch = next(iter(DataLoader(training, batch_size=3)))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "image": (3, 32, 32, 3),
        "tokens": (3, 17),
        "mask": (3, 32, 32),
    }
