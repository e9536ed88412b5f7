"""Every kind of fault, planted in a small synthetic set, is found, counted and told with examples."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tfanet.data import check as checks
from tfanet.data.refer import ReferDataset
from tfanet.errors import UserError

IMAGES = Path("images/mscoco/images/train2014")


@dataclass
class Planted:
    """The files of a set, to be changed; `first` are the references of `train`."""

    root: Path
    refs: list[dict[str, Any]]
    instances: dict[str, list[dict[str, Any]]]

    @property
    def first(self) -> dict[str, Any]:
        return next(ref for ref in self.refs if ref["split"] == "train")

    def of(self, split: str) -> dict[str, Any]:
        return next(ref for ref in self.refs if ref["split"] == split)

    def annotation(self) -> dict[str, Any]:
        return next(entry for entry in self.instances["annotations"] if entry["id"] == self.first["ann_id"])

    def image(self) -> dict[str, Any]:
        return next(entry for entry in self.instances["images"] if entry["id"] == self.first["image_id"])

    def picture(self) -> Path:
        return self.root / IMAGES / self.image()["file_name"]

    def write(self) -> None:
        (self.root / "refcoco/instances.json").write_text(json.dumps(self.instances))
        (self.root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(self.refs))


@pytest.fixture
def planted(shapes_root: Path, tmp_path: Path) -> Planted:
    root = tmp_path / "set"
    shutil.copytree(shapes_root, root)
    refs = pickle.loads((root / "refcoco/refs(unc).p").read_bytes())
    return Planted(root, refs, json.loads((root / "refcoco/instances.json").read_text()))


def no_image(planted: Planted) -> None:
    planted.first["image_id"] = 77


def no_annotation(planted: Planted) -> None:
    planted.first["ann_id"] = 77


def foreign_annotation(planted: Planted) -> None:
    planted.first["ann_id"] = planted.of("val")["ann_id"]


def twice(kind: str) -> Callable[[Planted], None]:
    def plant(planted: Planted) -> None:
        planted.instances[kind].append(dict(planted.instances[kind][0]))

    return plant


def reference_twice(planted: Planted) -> None:
    planted.refs[1]["ref_id"] = planted.refs[0]["ref_id"]


def sentence_twice(planted: Planted) -> None:
    planted.refs[1]["sentences"][0]["sent_id"] = planted.refs[0]["sentences"][0]["sent_id"]


def file_twice(planted: Planted) -> None:
    planted.instances["images"].append({**planted.image(), "id": 77})


def unknown_category(planted: Planted) -> None:
    planted.annotation()["category_id"] = 77


def fewer_pictures(planted: Planted) -> None:
    lost = planted.first["image_id"]
    planted.refs[:] = [ref for ref in planted.refs if ref["image_id"] != lost]


def no_test_split(planted: Planted) -> None:
    planted.refs[:] = [ref for ref in planted.refs if ref["split"] != "testB"]


def missing_picture(planted: Planted) -> None:
    planted.picture().unlink()


def cut_header(planted: Planted) -> None:
    planted.picture().write_bytes(planted.picture().read_bytes()[:20])


def empty_file(planted: Planted) -> None:
    planted.picture().write_bytes(b"")


def other_size(planted: Planted) -> None:
    Image.new("RGB", (9, 9)).save(planted.picture())


def empty_mask(planted: Planted) -> None:
    planted.annotation()["segmentation"] = [[5.0, 5.0, 5.2, 5.0, 5.1, 5.1]]


def odd_mask(planted: Planted) -> None:
    planted.annotation()["segmentation"] = [[1.0, 2.0, 3.0]]


def reaching_mask(planted: Planted) -> None:
    width = planted.image()["width"]
    planted.annotation()["segmentation"] = [[1.0, 1.0, width + 7.5, 1.0, 5.0, 40.0]]


def blank_sentence(planted: Planted) -> None:
    planted.first["sentences"][0]["sent"] = " \t"


def no_sentence(planted: Planted) -> None:
    planted.first["sentences"] = []


def shared_picture(planted: Planted) -> None:
    planted.refs.append({**planted.of("val"), "split": "train", "ref_id": 77, "sentences": []})
    planted.refs[-1]["sentences"] = [{"sent": "it", "sent_id": 78}]


MISMATCH = "references whose ids do not match"
UNREADABLE = "pictures unreadable or of another size"


@pytest.mark.parametrize(
    ("plant", "kinds", "example"),
    [
        pytest.param(no_image, [MISMATCH, "unexpected counts"], "needs image 77, absent", id="image"),
        pytest.param(no_annotation, [MISMATCH], "needs annotation 77, absent", id="annotation"),
        pytest.param(foreign_annotation, [MISMATCH], "of image 1000001", id="other image's annotation"),
        pytest.param(twice("images"), ["image ids given more than once"], "1 (2 times)", id="image twice"),
        pytest.param(
            twice("annotations"), ["annotation ids given more than once"], "(2 times)", id="annotation twice"
        ),
        pytest.param(
            twice("categories"), ["category ids given more than once"], "1 (2 times)", id="category twice"
        ),
        pytest.param(reference_twice, ["reference ids given more than once"], "(2 times)", id="ref twice"),
        pytest.param(sentence_twice, ["sentence ids given more than once"], "(2 times)", id="sent twice"),
        pytest.param(file_twice, ["picture files given more than once"], "COCO_train2014_", id="file twice"),
        pytest.param(unknown_category, ["annotations of an unknown category"], "category 77", id="category"),
        pytest.param(
            fewer_pictures, ["unexpected counts"], "train has 15 pictures instead of 16", id="counts"
        ),
        pytest.param(no_test_split, ["unexpected counts"], "testB has 0 pictures instead of 4", id="split"),
        pytest.param(missing_picture, ["missing pictures"], "COCO_train2014_", id="missing"),
        pytest.param(cut_header, [UNREADABLE], "Pillow can read", id="cut header"),
        pytest.param(empty_file, [UNREADABLE], "is empty", id="empty file"),
        pytest.param(other_size, [UNREADABLE], "is 9 x 9 pixels", id="size"),
        pytest.param(empty_mask, ["empty masks"], "annotation ", id="empty mask"),
        pytest.param(odd_mask, ["masks that cannot be read"], "three or more x, y pairs", id="odd mask"),
        pytest.param(
            reaching_mask, ["masks whose polygons reach beyond the picture"], "by 7.5 pixels", id="outside"
        ),
        pytest.param(blank_sentence, ["sentences without a word"], "of reference ", id="blank"),
        pytest.param(no_sentence, ["references without any sentence"], "reference ", id="no sentence"),
        pytest.param(
            shared_picture,
            ["unexpected counts", "pictures in train and in another split"],
            "COCO_train2014_000001000001.jpg in val",
            id="shared",
        ),
    ],
)
def test_planted_faults(
    planted: Planted, plant: Callable[[Planted], None], kinds: list[str], example: str
) -> None:
    plant(planted)
    planted.write()
    (report,) = checks.check(planted.root)
    assert [finding.kind for finding in report.problems] == kinds
    assert example in "; ".join(
        report.problems[-1 if len(kinds) > 1 and plant is shared_picture else 0].examples
    )


def test_a_sound_set(shapes_root: Path) -> None:
    (report,) = checks.check(shapes_root)
    assert (report.dataset, report.split_by, report.findings) == ("refcoco", "unc", [])
    pairs = {split: ReferDataset(shapes_root, split=split) for split in report.splits}
    assert report.splits == {
        split: {
            "references": len({pair.ref_id for pair in found}),
            "expressions": len(found),
            "pictures": len(found.image_ids),
        }
        for split, found in pairs.items()
    }


def test_headers_hide_what_decoding_finds(planted: Planted) -> None:
    content = planted.picture().read_bytes()
    planted.picture().write_bytes(content[: len(content) // 2])
    assert checks.check(planted.root)[0].problems == []
    (problem,) = checks.check(planted.root, decode=True)[0].problems
    assert (problem.kind, problem.count) == (UNREADABLE, 1)
    assert str(planted.picture()) in problem.examples[0]


def test_long_sentences_are_counted_and_no_problem(shapes_root: Path) -> None:
    (report,) = checks.check(shapes_root, token_length=6)
    assert report.problems == []
    (long,) = report.findings
    assert long.kind == "sentences of more than 6 tokens, which are cut"
    assert long.count > len(long.examples) == checks.EXAMPLES
    assert long.line().endswith("; ...")


def test_without_a_record_the_published_counts_hold(planted: Planted) -> None:
    (planted.root / "shapes.json").unlink()
    (problem,) = checks.check(planted.root)[0].problems
    assert (problem.kind, problem.count) == ("unexpected counts", 12)
    assert problem.examples[0].endswith("references instead of 42404")
    assert checks.check(planted.root, own=True)[0].problems == []


def test_all_data_sets_that_are_there(planted: Planted) -> None:
    planted.write()
    for name, refs in (("refcoco+", "unc"), ("refcocog", "google")):
        shutil.copytree(planted.root / "refcoco", planted.root / name)
        (planted.root / name / "refs(unc).p").rename(planted.root / name / f"refs({refs}).p")
    found = checks.check(planted.root, own=True)
    assert [(report.dataset, report.split_by) for report in found] == [
        ("refcoco", "unc"),
        ("refcoco+", "unc"),
        ("refcocog", "google"),
    ]
    (only,) = checks.check(planted.root, ["refcocog"], "umd")
    assert [finding.kind for finding in only.problems] == ["files missing or damaged"]
    assert "refs(umd).p does not exist" in only.problems[0].examples[0]


def test_googles_split_shares_pictures(planted: Planted) -> None:
    shared_picture(planted)
    planted.write()
    (planted.root / "refcoco").rename(planted.root / "refcocog")
    (planted.root / "refcocog/refs(unc).p").rename(planted.root / "refcocog/refs(google).p")
    (report,) = checks.check(planted.root, own=True)
    assert (report.problems, [found.count for found in report.findings]) == ([], [1])


def test_a_damaged_record_is_named(planted: Planted) -> None:
    (planted.root / "shapes.json").write_text("{")
    with pytest.raises(UserError, match=r"shapes.json is damaged"):
        checks.check(planted.root)


def test_visualize_are_required_before_training(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = {split: list(ReferDataset(planted.root, split=split)) for split in ("train", "val")}
    checks.require_images(pairs, 0)
    assert capsys.readouterr().err == ""
    lost = pairs["train"][0]
    many = sum(pair.image_id == lost.image_id for pair in pairs["train"])
    lost.image_path.unlink()
    checks.require_images(pairs, many)
    assert (
        capsys.readouterr().err == f"train: pictures missing (1, of {many} expressions): {lost.image_path}\n"
    )
    with pytest.raises(UserError, match=rf"missing: train \(1, of {many} expressions\); see"):
        checks.require_images(pairs, many - 1)
    pairs["val"][0].image_path.unlink()
    with pytest.raises(UserError, match=r"missing: val \(1, of \d+ expressions\); see"):
        checks.require_images(pairs, many)
    assert len(capsys.readouterr().err.splitlines()) == 1 + 2
