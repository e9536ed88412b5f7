"""`tfanet-data check` finds, counts and reports every kind of fault in a small synthetic data set."""

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
class EditableSet:
    """The files of a data set, to be changed; `first` is the first reference of `train`."""

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

    def image_path(self) -> Path:
        return self.root / IMAGES / self.image()["file_name"]

    def write(self) -> None:
        (self.root / "refcoco/instances.json").write_text(json.dumps(self.instances))
        (self.root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(self.refs))


@pytest.fixture
def editable(shapes_root: Path, tmp_path: Path) -> EditableSet:
    root = tmp_path / "set"
    shutil.copytree(shapes_root, root)
    refs = pickle.loads((root / "refcoco/refs(unc).p").read_bytes())
    return EditableSet(root, refs, json.loads((root / "refcoco/instances.json").read_text()))


def no_image(editable: EditableSet) -> None:
    editable.first["image_id"] = 77


def no_annotation(editable: EditableSet) -> None:
    editable.first["ann_id"] = 77


def foreign_annotation(editable: EditableSet) -> None:
    editable.first["ann_id"] = editable.of("val")["ann_id"]


def repeat(kind: str) -> Callable[[EditableSet], None]:
    def edit(editable: EditableSet) -> None:
        editable.instances[kind].append(dict(editable.instances[kind][0]))

    return edit


def repeated_reference(editable: EditableSet) -> None:
    editable.refs[1]["ref_id"] = editable.refs[0]["ref_id"]


def repeated_sentence(editable: EditableSet) -> None:
    editable.refs[1]["sentences"][0]["sent_id"] = editable.refs[0]["sentences"][0]["sent_id"]


def repeated_file(editable: EditableSet) -> None:
    editable.instances["images"].append({**editable.image(), "id": 77})


def unknown_category(editable: EditableSet) -> None:
    editable.annotation()["category_id"] = 77


def fewer_images(editable: EditableSet) -> None:
    removed = editable.first["image_id"]
    editable.refs[:] = [ref for ref in editable.refs if ref["image_id"] != removed]


def no_test_split(editable: EditableSet) -> None:
    editable.refs[:] = [ref for ref in editable.refs if ref["split"] != "testB"]


def missing_image(editable: EditableSet) -> None:
    editable.image_path().unlink()


def cut_header(editable: EditableSet) -> None:
    editable.image_path().write_bytes(editable.image_path().read_bytes()[:20])


def empty_file(editable: EditableSet) -> None:
    editable.image_path().write_bytes(b"")


def other_size(editable: EditableSet) -> None:
    Image.new("RGB", (9, 9)).save(editable.image_path())


def empty_mask(editable: EditableSet) -> None:
    editable.annotation()["segmentation"] = [[5.0, 5.0, 5.2, 5.0, 5.1, 5.1]]


def invalid_mask(editable: EditableSet) -> None:
    editable.annotation()["segmentation"] = [[1.0, 2.0, 3.0]]


def exceeding_mask(editable: EditableSet) -> None:
    width = editable.image()["width"]
    editable.annotation()["segmentation"] = [[1.0, 1.0, width + 7.5, 1.0, 5.0, 40.0]]


def blank_expression(editable: EditableSet) -> None:
    editable.first["sentences"][0]["sent"] = " \t"


def no_expression(editable: EditableSet) -> None:
    editable.first["sentences"] = []


def shared_image(editable: EditableSet) -> None:
    editable.refs.append({**editable.of("val"), "split": "train", "ref_id": 77, "sentences": []})
    editable.refs[-1]["sentences"] = [{"sent": "it", "sent_id": 78}]


MISMATCH = "references whose ids do not match"
UNREADABLE = "images unreadable or of another size"


@pytest.mark.parametrize(
    ("edit", "kinds", "example"),
    [
        pytest.param(no_image, [MISMATCH, "unexpected counts"], "needs image 77, absent", id="image"),
        pytest.param(no_annotation, [MISMATCH], "needs annotation 77, absent", id="annotation"),
        pytest.param(foreign_annotation, [MISMATCH], "of image 1000001", id="other image's annotation"),
        pytest.param(repeat("images"), ["image ids given more than once"], "1 (2 times)", id="image twice"),
        pytest.param(
            repeat("annotations"),
            ["annotation ids given more than once"],
            "(2 times)",
            id="annotation twice",
        ),
        pytest.param(
            repeat("categories"), ["category ids given more than once"], "1 (2 times)", id="category twice"
        ),
        pytest.param(repeated_reference, ["reference ids given more than once"], "(2 times)", id="ref twice"),
        pytest.param(repeated_sentence, ["sentence ids given more than once"], "(2 times)", id="sent twice"),
        pytest.param(repeated_file, ["image files given more than once"], "COCO_train2014_", id="file twice"),
        pytest.param(
            unknown_category, ["annotations with an unknown category"], "category 77", id="category"
        ),
        pytest.param(fewer_images, ["unexpected counts"], "train has 15 images instead of 16", id="counts"),
        pytest.param(no_test_split, ["unexpected counts"], "testB has 0 images instead of 4", id="split"),
        pytest.param(missing_image, ["missing images"], "COCO_train2014_", id="missing"),
        pytest.param(cut_header, [UNREADABLE], "Pillow can read", id="cut header"),
        pytest.param(empty_file, [UNREADABLE], "is empty", id="empty file"),
        pytest.param(other_size, [UNREADABLE], "is 9 x 9 pixels", id="size"),
        pytest.param(empty_mask, ["empty masks"], "annotation ", id="empty mask"),
        pytest.param(invalid_mask, ["unreadable masks"], "three or more x, y pairs", id="invalid mask"),
        pytest.param(
            exceeding_mask, ["masks whose polygons exceed the image"], "by 7.5 pixels", id="outside"
        ),
        pytest.param(blank_expression, ["expressions without a word"], "of reference ", id="blank"),
        pytest.param(no_expression, ["references without an expression"], "reference ", id="no expression"),
        pytest.param(
            shared_image,
            ["unexpected counts", "images in train and in another split"],
            "COCO_train2014_000001000001.jpg in val",
            id="shared",
        ),
    ],
)
def test_every_kind_of_fault_is_reported(
    editable: EditableSet, edit: Callable[[EditableSet], None], kinds: list[str], example: str
) -> None:
    edit(editable)
    editable.write()
    (report,) = checks.check(editable.root)
    assert [finding.kind for finding in report.problems] == kinds
    assert example in "; ".join(
        report.problems[-1 if len(kinds) > 1 and edit is shared_image else 0].examples
    )


def test_valid_data_set(shapes_root: Path) -> None:
    (report,) = checks.check(shapes_root)
    assert (report.dataset, report.split_by, report.findings) == ("refcoco", "unc", [])
    pairs = {split: ReferDataset(shapes_root, split=split) for split in report.splits}
    assert report.splits == {
        split: {
            "references": len({pair.ref_id for pair in samples}),
            "expressions": len(samples),
            "pictures": len(samples.image_ids),
        }
        for split, samples in pairs.items()
    }


def test_truncated_image_is_found_by_decoding_only(editable: EditableSet) -> None:
    content = editable.image_path().read_bytes()
    editable.image_path().write_bytes(content[: len(content) // 2])
    assert checks.check(editable.root)[0].problems == []
    (problem,) = checks.check(editable.root, decode=True)[0].problems
    assert (problem.kind, problem.count) == (UNREADABLE, 1)
    assert str(editable.image_path()) in problem.examples[0]


def test_long_expressions_are_a_note(shapes_root: Path) -> None:
    (report,) = checks.check(shapes_root, token_length=6)
    assert report.problems == []
    (long,) = report.findings
    assert long.kind == "expressions of more than 6 tokens, which are truncated"
    assert long.count > len(long.examples) == checks.EXAMPLES
    assert long.line().endswith("; ...")


def test_published_counts_are_expected_without_a_record(editable: EditableSet) -> None:
    (editable.root / "shapes.json").unlink()
    (problem,) = checks.check(editable.root)[0].problems
    assert (problem.kind, problem.count) == ("unexpected counts", 12)
    assert problem.examples[0].endswith("references instead of 42404")
    assert checks.check(editable.root, own=True)[0].problems == []


def test_all_present_data_sets_are_checked(editable: EditableSet) -> None:
    editable.write()
    for name, refs in (("refcoco+", "unc"), ("refcocog", "google")):
        shutil.copytree(editable.root / "refcoco", editable.root / name)
        (editable.root / name / "refs(unc).p").rename(editable.root / name / f"refs({refs}).p")
    reports = checks.check(editable.root, own=True)
    assert [(report.dataset, report.split_by) for report in reports] == [
        ("refcoco", "unc"),
        ("refcoco+", "unc"),
        ("refcocog", "google"),
    ]
    (only,) = checks.check(editable.root, ["refcocog"], "umd")
    assert [finding.kind for finding in only.problems] == ["files missing or damaged"]
    assert "refs(umd).p does not exist" in only.problems[0].examples[0]


def test_google_split_shares_images(editable: EditableSet) -> None:
    shared_image(editable)
    editable.write()
    (editable.root / "refcoco").rename(editable.root / "refcocog")
    (editable.root / "refcocog/refs(unc).p").rename(editable.root / "refcocog/refs(google).p")
    (report,) = checks.check(editable.root, own=True)
    assert (report.problems, [finding.count for finding in report.findings]) == ([], [1])


def test_damaged_record_is_reported(editable: EditableSet) -> None:
    (editable.root / "shapes.json").write_text("{")
    with pytest.raises(UserError, match=r"shapes.json is damaged"):
        checks.check(editable.root)


def test_images_are_required_before_training(
    editable: EditableSet, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = {split: list(ReferDataset(editable.root, split=split)) for split in ("train", "val")}
    checks.require_images(pairs, 0)
    assert capsys.readouterr().err == ""
    first = pairs["train"][0]
    count = sum(pair.image_id == first.image_id for pair in pairs["train"])
    first.image_path.unlink()
    checks.require_images(pairs, count)
    assert (
        capsys.readouterr().err == f"train: images missing (1, of {count} expressions): {first.image_path}\n"
    )
    with pytest.raises(UserError, match=rf"missing: train \(1, of {count} expressions\); see"):
        checks.require_images(pairs, count - 1)
    pairs["val"][0].image_path.unlink()
    with pytest.raises(UserError, match=r"missing: val \(1, of \d+ expressions\); see"):
        checks.require_images(pairs, count)
    assert len(capsys.readouterr().err.splitlines()) == 1 + 2
