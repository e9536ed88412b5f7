from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tfanet.data.cli import main
from tfanet.data.refer import ReferDataset


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of `tfanet-data ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["tfanet-data", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_make_then_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, sheet = tmp_path / "set", tmp_path / "sheet.png"
    assert call(monkeypatch, "make", root, "--train", 1, "--val", 2, "--levels", "relations, all") == 0
    assert f"next: tfanet-data show {root}" in capsys.readouterr().out
    assert call(monkeypatch, "show", root, "--split", "testA", "-o", sheet, "-n", 3) == 0
    with Image.open(sheet) as image:
        assert image.width > 3 * 200
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 100


def test_check_reports_and_exit_code(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check", shapes_root) == 0
    output = capsys.readouterr().out
    assert "no problems" in output
    assert f"next: tfanet-train --data {shapes_root} --dataset refcoco" in output
    assert "train" in output.splitlines()[2]

    assert (
        call(monkeypatch, "check", shapes_root, "--dataset", "refcocog", "--json", tmp_path / "r.json") == 1
    )
    shown = capsys.readouterr()
    assert "needed: refcocog/instances.json and refcocog/refs(umd).p" in shown.out
    assert shown.err.strip() == f"verification failed: kinds of problems in {shapes_root}: refcocog: 1"
    google = ("--dataset", "refcocog", "--split-by", "google")
    assert call(monkeypatch, "check", shapes_root, *google) == 1
    assert "needed: refcocog/instances.json and refcocog/refs(google).p" in capsys.readouterr().out
    (report,) = json.loads((tmp_path / "r.json").read_text())
    assert report["findings"][0]["kind"] == "files missing or damaged"


def test_pack_prints_the_training_command(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed"
    assert call(monkeypatch, "pack", shapes_root, out, "--image-size", 64) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 30 images and 59 masks of 64 x 64",
        f"next: tfanet-train --data {shapes_root} --dataset refcoco --image-size 64 --cache {out}",
    ]


def test_google_split_is_read_and_in_the_next_command(
    gref_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, google = tmp_path / "sheet.png", ("--dataset", "refcocog", "--split-by", "google")
    count = len(ReferDataset(gref_root, "refcocog", "val", "google"))
    assert count > len(ReferDataset(gref_root, "refcocog", "val"))
    assert call(monkeypatch, "show", gref_root, *google, "-o", sheet, "-n", 2) == 0
    assert capsys.readouterr().out == f"{sheet}: 2 of {count} expressions of refcocog (google) val\n"
    assert call(monkeypatch, "show", gref_root, *google, "--split", "test", "-o", sheet) == 2
    assert "refs(google).p has no split 'test'; its splits: train, val" in capsys.readouterr().err
    command = f"next: tfanet-train --data {gref_root} --dataset refcocog --split-by google"
    out = tmp_path / "packed"
    assert call(monkeypatch, "pack", gref_root, out, *google, "--image-size", 32) == 0
    assert f"{command} --image-size 32 --cache {out}\n" in capsys.readouterr().out
    assert call(monkeypatch, "check", gref_root, *google, "--own") == 0
    assert f"{command}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["make", "set", "--levels", "poems"], "unknown language level poems", id="level"),
        pytest.param(["make", "set", "--dataset", "coco"], "unknown data set 'coco'", id="data set"),
        pytest.param(["make", "set", "--train", "0", "--val", "0"], "not all 0", id="nothing to make"),
        pytest.param(
            ["show", "nowhere", "--split-by", "google"],
            "refcoco/refs(google).p and",
            id="no data with this split",
        ),
        pytest.param(["show", "nowhere"], "nowhere/refcoco does not exist", id="no data"),
        pytest.param(["pack", ".", "out", "--image-size", "100"], "a multiple of 32", id="invalid size"),
        pytest.param(["pack", "nowhere", "out"], "nowhere/refcoco does not exist", id="nothing to pack"),
        pytest.param(["check", "nowhere"], "nowhere is not a folder", id="no folder"),
        pytest.param(["check", ".", "--dataset", "coco"], "unknown data set 'coco'", id="set to check"),
        pytest.param(["show", "nowhere", "-o", "sheet.txt"], "must end in .png, .jpg", id="sheet name"),
        pytest.param(
            ["show", "nowhere", "-o", "/dev/null/sheet.png"], "cannot write /dev/null/sheet.png", id="sheet"
        ),
    ],
)
def test_user_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
