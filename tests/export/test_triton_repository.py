"""`tfanet-export triton`: the files and messages it writes, atomically, and its errors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_engines import CONFIG, write_plan, write_sidecar

from tfanet.errors import UserError
from tfanet.files import sha256
from tfanet_engines.sidecar import external_data_path, sidecar_path
from tfanet_export.cli import main
from tfanet_export.triton_server import repository as module
from tfanet_export.triton_server.repository import write_repository


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(*arguments)`: exit code, stdout and stderr of `tfanet-export`."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["tfanet-export", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_copied_modules_import_without_the_others(small_engine, tmp_path):
    repository = write_repository(tmp_path / "models", [small_engine])
    code = "from tfanet.data import images, preprocess, tokens; import sys; sys.exit('torch' in sys.modules)"
    folder = repository.path / repository.client_model / "1"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(folder)})
    assert done.returncode == 0


def test_command_writes_a_complete_repository_and_prints_the_next_step(command, small_engine, tmp_path):
    out = tmp_path / "models"
    code, output, _ = command("triton", out, "--engine", small_engine, "--name", "finder")
    assert code == 0
    assert files_of(out) == [
        "finder/1/bpe_simple_vocab_16e6.txt.gz",
        "finder/1/model.py",
        *(f"finder/1/tfanet/{name}" for name in sorted(module.COPIED)),
        "finder/config.pbtxt",
        "finder_core/1/model.onnx",
        "finder_core/1/model.onnx.json",
        "finder_core/config.pbtxt",
        "finder_core/warmup/tokens",
    ]
    core = out / "finder_core" / "1"
    assert sha256(core / "model.onnx") == sha256(small_engine)
    assert json.loads((core / "model.onnx.json").read_text())["file_sha256"] == sha256(core / "model.onnx")
    summary = "clients call finder; finder_core computes, fp16, backend onnxruntime, batches of up to 8"
    assert summary in output
    assert 'pip install "numpy<2" pillow ftfy regex' in output
    assert f"next: tritonserver --model-repository={out}" in output
    assert out.stat().st_mode & 0o777 == 0o755


def test_plan_reports_the_required_tensorrt_version(command, tmp_path):
    plan = write_plan(tmp_path / "a.plan", "8.9")
    code, output, _ = command("triton", tmp_path / "models", "--engine", plan)
    assert code == 0
    assert "the server's TensorRT must be 10.13.3.9" in output
    note = (tmp_path / "models" / "tfanet_core" / "config.pbtxt").read_text().splitlines()[0]
    assert note.startswith("# Written by tfanet ")
    assert note.endswith("from a.plan: fp16, weights abababababab, tensorrt 10.13.3.9.")


def test_external_weights_keep_the_name_that_the_file_refers_to(small_engine, tmp_path):
    external_data_path(small_engine).write_bytes(b"weights")
    write_sidecar(small_engine, kind="onnx", builder="torch.onnx", builder_version="2.14")
    written = write_repository(tmp_path / "models", [small_engine])
    copied = written.path / "tfanet_core" / "1" / external_data_path(small_engine).name
    assert copied.read_bytes() == b"weights"
    external_data_path(small_engine).write_bytes(b"altered")
    assert_rejected(tmp_path / "other", [small_engine], "truncated or altered")


def test_vocabulary_is_found_without_pytorch(monkeypatch):
    assert module._vocabulary().stat().st_size > 1_000_000
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install open_clip_torch"):
        module._vocabulary()


def assert_rejected(out, engines, match, **options):
    """Check that writing raises a one-line `UserError` that matches."""
    with pytest.raises(UserError, match=match) as raised:
        write_repository(out, engines, **options)
    assert "\n" not in str(raised.value)


def test_unservable_engines_are_rejected(small_engine, tmp_path):
    out = tmp_path / "models"
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(small_engine.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    plan, same = write_plan(tmp_path / "a.plan", "8.9"), write_plan(tmp_path / "b.plan", "8.9")
    altered = write_plan(tmp_path / "altered.plan", "8.9")
    altered.write_bytes(b"another plan")
    swapped = write_plan(tmp_path / "swapped.plan", "8.9")
    sidecar_path(swapped).write_text(sidecar_path(small_engine).read_text())
    swapped.write_bytes(small_engine.read_bytes())
    ranged = write_plan(tmp_path / "ranged.plan", "8.0+")
    other_config = write_plan(tmp_path / "c.plan", "8.6", dataclasses.replace(CONFIG, image_size=64))
    cases = [
        ([weights], r"must be an \.onnx or a \.plan file", {}),
        ([tmp_path / "none.plan"], r"none\.plan\.json is missing", {}),
        ([plain], r"plain\.onnx\.json is missing", {}),
        ([altered], "truncated or altered", {}),
        ([swapped], "of kind onnx; rebuild it", {}),
        ([small_engine, plan], "give one ONNX file alone .*, or plans only", {}),
        ([plan, small_engine], "differ in their kind", {}),
        ([ranged], r"is for compute capabilities 8\.0\+; build one plan per GPU", {}),
        ([plan, same], "both for compute capability 8.9; give one per GPU", {}),
        ([plan, other_config], "differ in their config; serve them as two models", {}),
        (
            [plan, write_plan(tmp_path / "w.plan", "8.6", weights_sha256="cd" * 32)],
            "differ in their weights",
            {},
        ),
        ([plan, write_plan(tmp_path / "p.plan", "8.6", precision="fp32")], "differ in their precision", {}),
        (
            [plan, write_plan(tmp_path / "v.plan", "8.6", builder_version="11.4")],
            "differ in their version of TensorRT",
            {},
        ),
        (
            [plan, write_plan(tmp_path / "n.plan", "8.6", batch=(1, 1, 8))],
            "differ in their batch profile",
            {},
        ),
        (
            [write_plan(tmp_path / "r.plan", "8.9", builder="tensorrt_rtx")],
            r"Triton has no backend for TensorRT-RTX plans such as .*r\.plan",
            {},
        ),
        (
            [write_plan(tmp_path / "m.plan", "8.9", batch=(2, 2, 8))],
            "batches of at least 2, .*--batch 1,N,M",
            {},
        ),
        ([plan], "takes batches of 1 to 4; --max-batch 5 is outside", {"max_batch": 5}),
        ([small_engine], "takes batches of 1 to 1024; ", {"max_batch": 1025}),
        ([small_engine], "invalid model name '../up': use letters", {"name": "../up"}),
    ]
    for engines, match, options in cases:
        assert_rejected(out, engines, match, **options)
        assert not out.exists()


def test_command_error_is_one_line_and_exit_code_2(command, tmp_path):
    plan = write_plan(tmp_path / "a.plan", "8.9", builder="tensorrt_rtx", builder_version="1.7.1")
    code, _, errors = command("triton", tmp_path / "models", "--engine", plan)
    assert code == 2
    assert "error: Triton has no backend for TensorRT-RTX plans such as " in errors
    assert "a.plan; serve the .onnx file" in errors


def test_folder_must_be_new_or_empty(small_engine, tmp_path):
    out = tmp_path / "models"
    out.mkdir()
    write_repository(out, [small_engine])
    before = files_of(out)
    assert_rejected(out, [small_engine], "models is not empty; give a new folder")
    assert files_of(out) == before
    (tmp_path / "file").write_text("kept")
    assert_rejected(tmp_path / "file", [small_engine], "file is a file; give a new folder")
    assert_rejected(tmp_path / "file" / "models", [small_engine], "cannot write")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_write_leaves_nothing(small_engine, tmp_path, monkeypatch, error):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(module, "client_config", fail)
    before = files_of(tmp_path)
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_repository(tmp_path / "models", [small_engine])
    assert files_of(tmp_path) == before
    assert not (tmp_path / "models").exists()
