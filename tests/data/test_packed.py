"""A packed data set gives the same values as decoding, and is rejected if it does not match the data."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tfanet.data import packed
from tfanet.data.packed import PackedImages, pack
from tfanet.data.refer import ReferDataset, ReferFiles
from tfanet.data.transforms import TrainingPairs
from tfanet.errors import UserError

SIZE = 90
"""Its square is not a multiple of 8, so that a mask ends within a byte."""
SPLITS = ("train", "val", "testA", "testB")


def count_referents(files: ReferFiles) -> int:
    """How many objects have a reference."""
    return len({ref["ann_id"] for ref in files.refs})


@pytest.fixture(scope="module")
def files(shapes_root: Path) -> ReferFiles:
    return ReferFiles.load(shapes_root)


@pytest.fixture(scope="module")
def folder(files: ReferFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set"
    assert pack(files, SIZE, out) == (30, count_referents(files))
    return out


@pytest.mark.parametrize(("splits", "workers"), [(SPLITS, 0), (("val",), 2)])
def test_tensors_equal_those_of_decoding(
    files: ReferFiles, folder: Path, splits: tuple[str, ...], workers: int
) -> None:
    for split in splits:
        source = ReferDataset.of(files, split)
        order = np.random.default_rng(0).permutation(len(source)).tolist()
        loaders = [
            DataLoader(
                TrainingPairs(source, SIZE, 17, packed=images),
                batch_size=5,
                sampler=order,
                num_workers=workers,
            )
            for images in (None, pickle.loads(pickle.dumps(PackedImages(folder, files, SIZE))))
        ]
        for decoded, packed_batch in zip(*loaders, strict=True):
            assert decoded.keys() == packed_batch.keys()
            for name, tensor in decoded.items():
                assert torch.equal(tensor, packed_batch[name]), name


def test_items_are_copies_and_nothing_is_decoded(
    files: ReferFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = TrainingPairs(ReferDataset.of(files, "val"), SIZE, 17, packed=PackedImages(folder, files, SIZE))
    monkeypatch.setattr(ReferDataset, "image", None)
    monkeypatch.setattr(ReferDataset, "mask", None)
    first = pairs[0]
    original = {name: tensor.clone() for name, tensor in first.items()}
    first["image"].zero_()
    first["mask"].zero_()
    assert all(torch.equal(tensor, original[name]) for name, tensor in pairs[0].items())


def test_pickle_does_not_contain_the_files(files: ReferFiles, folder: Path) -> None:
    images = PackedImages(folder, files, SIZE)
    assert len(pickle.dumps(images)) < 10_000 < (folder / "images.bin").stat().st_size


def copy_set(shapes_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(shapes_root, tmp_path / "own")
    return tmp_path / "own"


def test_unreadable_images_are_skipped_and_decoded_later(
    shapes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_set(shapes_root, tmp_path)
    pair = ReferDataset(root, split="val")[0]
    pair.image_path.write_bytes(pair.image_path.read_bytes()[:999])
    files = ReferFiles.load(root)
    assert pack(files, SIZE, tmp_path / "packed") == (29, count_referents(files))
    assert f"skipped: image {pair.image_path} is damaged" in capsys.readouterr().err
    pairs = TrainingPairs(
        ReferDataset.of(files, "val"), SIZE, 17, packed=PackedImages(tmp_path / "packed", files, SIZE)
    )
    with pytest.raises(UserError, match="is damaged or cannot be read"):
        pairs[0]
    assert pairs[len(pairs) - 1]["image"].shape == (SIZE, SIZE, 3)


def replace_image(root: Path, folder: Path) -> None:
    path = ReferDataset(root, split="val")[0].image_path
    Image.new("RGB", (9, 9)).save(path)


def other_decoder(root: Path, folder: Path) -> None:
    """Another image of the same size in bytes, as if the decoder had changed."""
    paths = sorted((root / "images/mscoco/images/train2014").iterdir())
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[:-400] + bytes(398) + content[-2:])


def other_expression(root: Path, folder: Path) -> None:
    path = root / "refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    refs[0]["sentences"][0]["sent"] = "other"
    path.write_bytes(pickle.dumps(refs))


def truncated_masks(root: Path, folder: Path) -> None:
    content = (folder / "masks.bin").read_bytes()
    (folder / "masks.bin").write_bytes(content[:-1])


def no_index(root: Path, folder: Path) -> None:
    (folder / "index.json").unlink()


def no_images(root: Path, folder: Path) -> None:
    (folder / "images.bin").unlink()


def truncated_index(root: Path, folder: Path) -> None:
    (folder / "index.json").write_text((folder / "index.json").read_text()[:300])


def index_with(**fields: object) -> Callable[[Path, Path], None]:
    def damage(root: Path, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**index, **fields}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(replace_image, "was made from other data than", id="image"),
        pytest.param(other_expression, "was made from other data than", id="expression"),
        pytest.param(other_decoder, "gives other pixels than", id="decoder"),
        pytest.param(truncated_masks, r"masks.bin has \d+ bytes instead of \d+", id="truncated masks"),
        pytest.param(no_index, "is not a packed data set", id="no index"),
        pytest.param(no_images, r"images.bin has 0 bytes", id="no images"),
        pytest.param(truncated_index, r"index.json is invalid: Invalid JSON", id="truncated index"),
        pytest.param(index_with(images=[1]), r"index.json is invalid: images\[0\]: ", id="invalid index"),
        pytest.param(index_with(version=0), "packed by another version", id="version"),
        pytest.param(index_with(image_size=64), "images of 64 x 64, not 90", id="size"),
    ],
)
def test_mismatching_folder_is_rejected(
    shapes_root: Path, folder: Path, tmp_path: Path, damage: Callable[[Path, Path], None], message: str
) -> None:
    root, own = copy_set(shapes_root, tmp_path), tmp_path / "packed"
    shutil.copytree(folder, own)
    PackedImages(own, ReferFiles.load(root), SIZE)
    damage(root, own)
    command = f"tfanet-data pack {root} NEW_FOLDER --dataset refcoco --image-size {SIZE}"
    with pytest.raises(UserError, match=message) as caught:
        PackedImages(own, ReferFiles.load(root), SIZE)
    assert command in str(caught.value)


def test_images_of_another_split_are_rejected(gref_root: Path, tmp_path: Path) -> None:
    umd, google = (ReferFiles.load(gref_root, "refcocog", split_by) for split_by in ("umd", "google"))
    pack(google, SIZE, tmp_path / "google")
    PackedImages(tmp_path / "google", google, SIZE)
    with pytest.raises(UserError, match="is refcocog split by google, not refcocog split by umd"):
        PackedImages(tmp_path / "google", umd, SIZE)
    pack(umd, SIZE, tmp_path / "umd")
    with pytest.raises(UserError) as caught:
        PackedImages(tmp_path / "umd", google, SIZE)
    command = (
        f"tfanet-data pack {gref_root} NEW_FOLDER --dataset refcocog --split-by google --image-size {SIZE}"
    )
    assert command in str(caught.value)


@pytest.mark.parametrize("name", ["images.bin", "masks.bin"])
def test_flipped_bit_is_found_when_its_entry_is_read(
    files: ReferFiles, folder: Path, tmp_path: Path, name: str
) -> None:
    own = tmp_path / "packed"
    shutil.copytree(folder, own)
    content = bytearray((own / name).read_bytes())
    pairs = list(ReferDataset.of(files, None))
    ids = list(dict.fromkeys(pair.image_id if name == "images.bin" else pair.ann_id for pair in pairs))
    content[len(content) // len(ids) + 5] ^= 4
    (own / name).write_bytes(content)
    images = PackedImages(own, files, SIZE)
    read = images.image if name == "images.bin" else images.mask
    with pytest.raises(UserError, match=f"{ids[1]} in .* is damaged; make a new one"):
        read(ids[1])
    for entry_id in ids[2:]:
        assert read(entry_id) is not None


def test_failed_packing_leaves_no_files(
    files: ReferFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(UserError, match=r"needs 0.0 GB, the disk has 0.0 GB left"):
        pack(files, SIZE, tmp_path / "out")
    monkeypatch.undo()

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packed, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(files, SIZE, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    with pytest.raises(UserError, match="is not empty"):
        pack(files, SIZE, tmp_path / "out")
