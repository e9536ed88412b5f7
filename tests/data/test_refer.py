from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tfanet.data.refer import ReferDataset, ReferFiles, usual_split_by
from tfanet.errors import UserError

HEIGHT, WIDTH = 12, 16
SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]
REF = {
    "ref_id": 5,
    "ann_id": 50,
    "category_id": 1,
    "image_id": 500,
    "split": "val",
    "file_name": "COCO_train2014_000000000500_50.jpg",
    "sent_ids": [1, 2],
    "sentences": [
        {"raw": "Left Café!", "sent": "left café", "sent_id": 1, "tokens": ["left", "café"]},
        {"raw": "near the wall", "sent_id": 2, "tokens": []},
    ],
}
INSTANCES = {
    "images": [{"id": 500, "file_name": "image.png", "height": HEIGHT, "width": WIDTH}],
    "annotations": [
        {"id": 50, "image_id": 500, "category_id": 1, "segmentation": [SQUARE], "bbox": [2, 2, 6, 6]},
        {"id": 51, "image_id": 501, "category_id": 1, "segmentation": [SQUARE], "bbox": [2, 2, 6, 6]},
    ],
    "categories": [{"id": 1, "name": "table"}],
}


def write_set(
    root: Path,
    refs: Any = (REF,),
    instances: Any = INSTANCES,
    images: str = "images/mscoco/images/train2014",
    refs_name: str = "refcoco/refs(unc).p",
) -> Path:
    """A data set in `root`; `refs` as objects or as the pickle's bytes."""
    path = root / refs_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(refs if isinstance(refs, bytes) else pickle.dumps(list(refs)))
    (path.parent / "instances.json").write_text(
        instances if isinstance(instances, str) else json.dumps(instances)
    )
    (root / images).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (9, 8, 7)).save(root / images / "image.png")
    return root


def changed(entry: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(entry), **fields}


def without(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}


def test_each_expression_is_a_sample(tmp_path: Path) -> None:
    pairs = ReferDataset(write_set(tmp_path))
    assert len(pairs) == 2
    first, second = pairs
    assert (first.ref_id, first.ann_id, first.image_id, first.sent_id) == (5, 50, 500, 1)
    assert (first.text, second.text) == ("left café", "near the wall")
    assert (first.height, first.width, first.category) == (HEIGHT, WIDTH, "table")
    assert pairs.image(first).size == (WIDTH, HEIGHT)
    assert pairs.image_ids == [500]
    with pytest.raises(IndexError):
        pairs[2]


@pytest.mark.parametrize("folder", ["images/mscoco/images/train2014", "images/train2014", "train2014"])
def test_image_folders(tmp_path: Path, folder: str) -> None:
    pairs = ReferDataset(write_set(tmp_path, images=folder))
    assert pairs[0].image_path == tmp_path / folder / "image.png"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    pairs = ReferDataset(write_set(tmp_path, refs=pickle.dumps([REF], protocol)))
    assert [pair.text for pair in pairs] == ["left café", "near the wall"]


def python2_pickle(protocol: int) -> bytes:
    """The reference as Python 2 wrote it: byte strings, here of UTF-8, and long integers."""

    def text(value: str) -> bytes:
        raw = value.encode()
        if protocol == 0:
            return b"S'" + b"".join(b"\\x%02x" % byte for byte in raw) + b"'\n"
        return b"U" + bytes([len(raw)]) + raw

    def dump(value: Any) -> bytes:
        if isinstance(value, dict):
            return b"(d" + b"".join(text(key) + dump(item) + b"s" for key, item in value.items())
        if isinstance(value, list):
            return b"(l" + b"".join(dump(item) + b"a" for item in value)
        return text(value) if isinstance(value, str) else b"L%dL\n" % value

    return (b"" if protocol == 0 else b"\x80\x02") + dump([REF]) + b"."


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2_pickles(tmp_path: Path, protocol: int) -> None:
    pairs = ReferDataset(write_set(tmp_path, refs=python2_pickle(protocol)))
    assert [pair.text for pair in pairs] == ["left café", "near the wall"]


class Evil:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        pytest.param(Evil(os.mkdir, "pwned"), "posix.mkdir", id="call"),
        pytest.param(np.int64(3), "scalar", id="numpy scalar"),
        pytest.param(Path("x"), "Path", id="harmless class"),
        pytest.param(Evil(eval, "1"), "eval", id="builtin"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_imports_code_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: Any, name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, refs=pickle.dumps([changed(REF, split=payload)], protocol))
    with pytest.raises(UserError, match=rf"refs\(unc\).p is not safe to load: it imports .*{name}"):
        ReferDataset(tmp_path)
    assert not (tmp_path / "pwned").exists()


GOOD_PICKLE = pickle.dumps([REF])


@pytest.mark.parametrize(
    "content",
    [
        *(pytest.param(GOOD_PICKLE[:cut], id=f"cut at {cut}") for cut in (1, 5, 30, len(GOOD_PICKLE) - 1)),
        pytest.param(b"<html>not found</html>", id="html"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", id="lfs pointer"),
        pytest.param(bytes(range(256)), id="bytes"),
        pytest.param(b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", id="huge frame"),
        pytest.param(b"cos\nsystem\n"[:6] + b".", id="cut global"),
        pytest.param(b"\x80\x02\x82\x01.", id="extension code"),
        pytest.param(b"(l(dU\x01aK\x01sb.", id="build"),
    ],
)
def test_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"refs file .*refs\(unc\)\.p"):
        ReferDataset(write_set(tmp_path, refs=content))


def test_empty_refs_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        ReferDataset(write_set(tmp_path, refs=b""))


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        pytest.param(
            pickle.dumps({"refs": []}),
            r"refs\(unc\)\.p is invalid: Input should be a valid list",
            id="no list",
        ),
        pytest.param(["text"], r"is invalid: \[0\]: Input should be a valid dictionary", id="no dictionary"),
        *(
            pytest.param(
                [REF, without(REF, key)], rf"is invalid: \[1\]\.{key}: Field required", id=f"no {key}"
            )
            for key in ("ref_id", "ann_id", "image_id", "split", "sentences")
        ),
        pytest.param(
            [changed(REF, ref_id="5")],
            r"is invalid: \[0\]\.ref_id: Input should be a valid integer",
            id="type",
        ),
        pytest.param(
            [changed(REF, sentences=[{"sent_id": 1}])],
            r"is invalid: \[0\]: a sentence has neither `sent` nor `raw`",
            id="no text",
        ),
        pytest.param([changed(REF, image_id=9)], "needs image 9", id="unknown image"),
        pytest.param([changed(REF, ann_id=9)], "needs annotation 9", id="unknown annotation"),
        pytest.param([changed(REF, ann_id=51)], "of image 500, its annotation 51 of image 501", id="foreign"),
    ],
)
def test_invalid_refs(tmp_path: Path, refs: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReferDataset(write_set(tmp_path, refs=refs))


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        pytest.param("{", "instances.json is invalid: Expecting property name", id="json"),
        pytest.param([], "instances.json is invalid: Input should be", id="list"),
        pytest.param(without(INSTANCES, "images"), "is invalid: images: Field required", id="no images"),
        pytest.param(
            changed(INSTANCES, annotations=[without(INSTANCES["annotations"][0], "segmentation")]),
            r"annotations\[0\]\.segmentation: Field required",
            id="no segmentation",
        ),
        pytest.param(
            changed(INSTANCES, images=[changed(INSTANCES["images"][0], height=None)]),
            r"images\[0\]\.height: Input should be a valid integer",
            id="no height",
        ),
        pytest.param(
            changed(INSTANCES, images=[changed(INSTANCES["images"][0], width=0)]),
            r"images\[0\] has a size of 0 x 12 pixels",
            id="no width",
        ),
    ],
)
def test_invalid_instances(tmp_path: Path, instances: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReferDataset(write_set(tmp_path, instances=instances))


def test_unreadable_instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_bytes(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    write_set(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(UserError, match=r"cannot read instances file .*instances.json: Permission denied"):
        ReferDataset(tmp_path)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", {"train"}),
        ("val", {"val"}),
        ("testA", {"testA", "testAB"}),
        ("testB", {"testB", "testAB"}),
        ("testAB", {"testAB"}),
        ("test", {"test", "testA", "testB", "testAB"}),
    ],
)
def test_splits_match_as_in_refer(tmp_path: Path, split: str, expected: set[str]) -> None:
    names = ["train", "val", "testA", "testB", "testAB", "test"]
    refs = [changed(REF, ref_id=number, split=name) for number, name in enumerate(names)]
    pairs = ReferDataset(write_set(tmp_path, refs=refs), split=split)
    assert {names[pair.ref_id] for pair in pairs} == expected


def test_unknown_split_lists_the_known_ones(tmp_path: Path) -> None:
    refs = [REF, changed(REF, split="train")]
    with pytest.raises(UserError, match="no split 'dev'; its splits: train, val"):
        ReferDataset(write_set(tmp_path, refs=refs), split="dev")


@pytest.mark.parametrize(
    ("present", "requested", "chosen"),
    [
        (["umd", "google"], None, "umd"),
        (["umd", "google"], "google", "google"),
        (["google"], None, "google"),
        (["umd"], "google", None),
        (["google", "other"], None, None),
    ],
)
def test_choice_of_the_refs_file(
    tmp_path: Path, present: list[str], requested: str | None, chosen: str | None
) -> None:
    for number, name in enumerate(present):
        write_set(tmp_path, refs=[changed(REF, ref_id=number)], refs_name=f"refcocog/refs({name}).p")
    if chosen is None:
        with pytest.raises(UserError, match="does not exist"):
            ReferDataset(tmp_path, "refcocog", split_by=requested)
    else:
        pairs = ReferDataset(tmp_path, "refcocog", split_by=requested)
        assert (pairs[0].ref_id, pairs.split_by) == (present.index(chosen), chosen)
        assert requested or usual_split_by(tmp_path, "refcocog") == chosen


@pytest.mark.parametrize(
    ("dataset", "split_by", "present", "held_out"),
    [
        ("refcoco", "unc", ("train", "val"), ("val", "testA", "testB")),
        ("refcocog", "umd", ("train", "val", "test"), ("val", "test")),
        ("refcocog", "google", ("train", "val"), ("val",)),
        ("refcoco", "google", ("test", "train", "val"), ("val", "test")),
        ("refcoco", "own", ("testB", "train", "dev"), ("val", "testB")),
    ],
)
def test_held_out_splits(
    tmp_path: Path, dataset: str, split_by: str, present: tuple[str, ...], held_out: tuple[str, ...]
) -> None:
    """All of the default split, so that a missing one is reported; of another split those present."""
    refs = [changed(REF, ref_id=number, split=name) for number, name in enumerate(present)]
    write_set(tmp_path, refs=refs, refs_name=f"{dataset}/refs({split_by}).p")
    assert ReferFiles.load(tmp_path, dataset, split_by).held_out == held_out


def test_missing_folders_name_the_expected_files(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"must contain refcoco\+/instances.json, refcoco\+/refs\(unc\).p and images"
    ):
        ReferDataset(tmp_path / "nowhere", "refcoco+")
    with pytest.raises(UserError, match="unknown data set 'coco'"):
        ReferDataset(tmp_path, "coco")
    write_set(tmp_path)
    (tmp_path / "refcoco/instances.json").unlink()
    with pytest.raises(UserError, match=r"instances file .* does not exist"):
        ReferDataset(tmp_path)
    (tmp_path / "images").rename(tmp_path / "other")
    with pytest.raises(UserError, match="no image folder; expected one of images/mscoco"):
        ReferDataset(tmp_path)


def test_invalid_segmentation_names_the_annotation(tmp_path: Path) -> None:
    annotation = changed(INSTANCES["annotations"][0], segmentation=[[*SQUARE, float("nan"), 1.0]])
    pairs = ReferDataset(write_set(tmp_path, instances=changed(INSTANCES, annotations=[annotation])))
    with pytest.raises(
        UserError, match=r"instances.json, annotation 50: the segmentation's polygons contain nan"
    ):
        pairs.mask(pairs[0])


def test_damaged_and_missing_images_are_named(tmp_path: Path) -> None:
    pairs = ReferDataset(write_set(tmp_path))
    path = pairs[0].image_path
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(path)
    with pytest.raises(UserError, match=r"image.png is 17 x 12 pixels, .*instances.json says 16 x 12"):
        pairs.image(pairs[0])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"image.png"):
        pairs.image(pairs[0])
    path.unlink()
    with pytest.raises(UserError, match=r"image.png does not exist"):
        pairs.image(pairs[0])


def test_splits_of_files_read_once(tmp_path: Path) -> None:
    refs = [REF, changed(REF, split="train", ref_id=6)]
    files = ReferFiles.load(write_set(tmp_path, refs=refs))
    assert files.split_by == "unc"
    for split in ("train", "val"):
        assert list(ReferDataset.of(files, split)) == list(ReferDataset(tmp_path, split=split))
