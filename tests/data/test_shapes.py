from __future__ import annotations

import json
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tfanet.data import shapes
from tfanet.data.draw import draw_scene
from tfanet.data.masks import polygons_to_mask
from tfanet.data.refer import ReferDataset
from tfanet.data.scene import DEFAULT_LEVELS, Scene, sample_scene
from tfanet.data.shapes import RECORD, default_counts, ensure_shapes, make_sample, render_pair, write_shapes
from tfanet.errors import UserError

COUNTS = {"train": 6, "val": 4, "testA": 3, "testB": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", counts=COUNTS, seed=7)


def plain(value: Any) -> bool:
    """Consists of Python lists, dictionaries, ints and strings only, without NumPy scalars."""
    if type(value) is list:
        return all(plain(item) for item in value)
    if type(value) is dict:
        return all(plain(item) for pair in value.items() for item in pair)
    return type(value) in (int, str)


def test_refs_have_the_layout_of_the_refer_api(root: Path) -> None:
    refs = pickle.loads((root / "refcoco/refs(unc).p").read_bytes())
    assert plain(refs)
    for ref in refs:
        keys = "ref_id ann_id category_id image_id split level file_name sent_ids sentences"
        assert set(ref) == set(keys.split())
        assert [sentence["sent_id"] for sentence in ref["sentences"]] == ref["sent_ids"]
        for sentence in ref["sentences"]:
            assert set(sentence) == {"raw", "sent", "sent_id", "tokens"}
    for name in ("ref_id", "ann_id"):
        assert len({ref[name] for ref in refs}) == len(refs)


def test_instances_have_the_layout_of_coco(root: Path) -> None:
    instances = json.loads((root / "refcoco/instances.json").read_text())
    images = {image["id"]: image for image in instances["images"]}
    assert len(images) == sum(COUNTS.values())
    assert len({annotation["id"] for annotation in instances["annotations"]}) == len(instances["annotations"])
    for annotation in instances["annotations"]:
        image = images[annotation["image_id"]]
        (polygon,) = annotation["segmentation"]
        assert len(polygon) >= 6
        mask = polygons_to_mask([polygon], image["height"], image["width"])
        assert mask.sum() == pytest.approx(annotation["area"], rel=0.12)
        x, y, width, height = annotation["bbox"]
        rows, columns = np.nonzero(mask)
        assert (columns.min(), rows.min()) == pytest.approx((x, y), abs=2.5)
        assert (columns.max() + 1, rows.max() + 1) == pytest.approx((x + width, y + height), abs=2.5)
    for image in images.values():
        with Image.open(root / "images/mscoco/images/train2014" / image["file_name"]) as stored:
            assert stored.size == (image["width"], image["height"])


def test_test_splits_refer_to_other_shapes(root: Path) -> None:
    spoken = {
        split: {pair.category for pair in ReferDataset(root, split=split)} for split in ("testA", "testB")
    }
    assert spoken["testA"] <= {"circle", "square", "triangle"}
    assert spoken["testB"] <= {"star", "cross", "heart"}


def test_reader_equals_render_pair(root: Path) -> None:
    pairs = ReferDataset(root, split="val")
    firsts = {pair.image_id: pair for pair in reversed(list(pairs))}
    for index, image_id in enumerate(sorted(firsts)):
        image, text, mask = render_pair(7, index)
        pair = firsts[image_id]
        assert pair.text == text
        assert pair.level == make_sample(7, "val", index).level
        np.testing.assert_array_equal(pairs.image(pair), image)
        np.testing.assert_array_equal(pairs.mask(pair), mask)


def test_same_seed_gives_the_same_bytes_for_any_counts(root: Path, tmp_path: Path) -> None:
    fewer = write_shapes(tmp_path / "fewer", counts={"val": 2}, seed=7)
    names = sorted(path.name for path in (fewer / "images/mscoco/images/train2014").iterdir())
    assert len(names) == 2
    for name in names:
        both = [(base / "images/mscoco/images/train2014" / name).read_bytes() for base in (root, fewer)]
        assert both[0] == both[1]
    val = list(ReferDataset(root, split="val"))
    subset = list(ReferDataset(fewer, split="val"))
    assert [pair.text for pair in subset] == [pair.text for pair in val[: len(subset)]]


def test_seeds_and_splits_differ() -> None:
    images = {make_sample(seed, split, 0).jpeg for seed in (0, 1) for split in ("train", "val", "testA")}
    assert len(images) == 6


@pytest.mark.parametrize("seed", range(40))
def test_mask_covers_the_drawn_colour(seed: int) -> None:
    """Each pixel is assigned to the object's colour or to the shaded background, whichever is closer."""
    scene = sample_scene(np.random.default_rng(seed), "attributes")
    drawn = np.asarray(draw_scene(np.random.default_rng(seed), scene), dtype=float)
    ground = draw_scene(np.random.default_rng(seed), Scene(scene.width, scene.height, ()))
    ground_gap = gap_to_ray(drawn, np.asarray(ground, dtype=float), 0.5, 1.0)
    for obj in scene.objects:
        mask = polygons_to_mask([obj.polygon().reshape(-1).tolist()], scene.height, scene.width)
        inked = gap_to_ray(drawn, np.broadcast_to(obj.rgb, drawn.shape).astype(float), 0.74, 1.1) < ground_gap
        (left, top), (right, bottom) = obj.polygon().min(axis=0) - 2, obj.polygon().max(axis=0) + 3
        window = slice(max(0, int(top)), int(bottom)), slice(max(0, int(left)), int(right))
        labelled, drawn_here = mask[window] > 0, inked[window]
        assert (labelled & drawn_here).sum() / (labelled | drawn_here).sum() > 0.9, obj.appearance


def gap_to_ray(pixels: np.ndarray, colour: np.ndarray, low: float, high: float) -> np.ndarray:
    """Distance of each pixel to `colour` times the best brightness between `low` and `high`."""
    light = np.clip((pixels * colour).sum(2) / (colour**2).sum(2), low, high)
    return np.linalg.norm(pixels - light[..., None] * colour, axis=2)


def test_splits_of_refcocog(tmp_path: Path) -> None:
    made = write_shapes(tmp_path / "g", "refcocog", ("relations",), {"train": 1, "val": 1, "test": 2})
    assert (made / "refcocog/refs(umd).p").is_file()
    assert len(ReferDataset(made, "refcocog", "test").image_ids) == 2
    assert set(default_counts("refcocog")) == {"train", "val", "test"}


def test_complete_set_is_reused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "make_sample", None)
    assert write_shapes(root, counts=COUNTS, seed=7) == root
    assert ensure_shapes(root) == root


def test_ensure_shapes_makes_the_default_set_if_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "default_counts", lambda _: {"val": 1})
    made = ensure_shapes(tmp_path / "new")
    assert len(ReferDataset(made).image_ids) == 1
    assert json.loads((made / RECORD).read_text())["levels"] == list(DEFAULT_LEVELS)
    record = json.loads((made / RECORD).read_text())
    for other in (record | {"version": 1}, [], None):
        (made / RECORD).write_text(json.dumps(other) if other else "{")
        with pytest.raises(
            UserError, match=r"another version of tfanet; make it again: tfanet-data make .* --force"
        ):
            ensure_shapes(made)


def test_other_parameters_need_force(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "set", counts={"val": 1})
    with pytest.raises(UserError, match="--force"):
        write_shapes(folder, counts={"val": 2})
    write_shapes(folder, counts={"val": 2}, force=True)
    assert json.loads((folder / RECORD).read_text())["counts"]["val"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("force", [False, True])
def test_folder_with_other_content_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not a synthetic data set"):
        write_shapes(tmp_path, counts={"val": 1}, force=force)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_interruption_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([make_sample(0, "val", 0)])

    def interrupted(*_: object) -> shapes.Sample:
        sample = next(made, None)
        if sample is None:
            raise KeyboardInterrupt
        return sample

    monkeypatch.setattr(shapes, "make_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "set", counts={"val": 3})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"dataset": "coco"}, "unknown data set 'coco'", id="data set"),
        pytest.param({"levels": ("poems",)}, "unknown language level poems", id="level"),
        pytest.param({"levels": ()}, "unknown language level", id="no level"),
        pytest.param({"counts": {"test": 3}}, "no split test", id="split"),
        pytest.param({"counts": {"val": -1}}, "from 0 to 999999", id="negative"),
        pytest.param({"counts": {"val": 0}}, "not all 0", id="nothing"),
    ],
)
def test_invalid_parameters(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_shapes(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_image_is_jpeg_with_full_colour() -> None:
    with Image.open(BytesIO(make_sample(0, "val", 0).jpeg)) as image:
        assert image.format == "JPEG"
        assert {sampling[1:3] for sampling in image.layer} == {(1, 1)}
