"""Counts compared with hand calculations, published values and the paper's Table 4."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tfanet
import tfanet.ops
from tfanet.config import VARIANTS, preset
from tfanet.counts import FLOPS, PARTS, SCAN_FLOPS, TABLE_4, Count, count_parts, count_row, total
from tfanet.counts_cli import main
from tfanet.weights import bundled

pytestmark = pytest.mark.integration


def call(monkeypatch, *arguments):
    """The exit code of `tfanet-count ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["tfanet-count", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("op", "shapes", "macs", "scans"),
    [
        pytest.param(
            "selective_scan",
            [(2, 6, 5), (2, 6, 5), (6, 1), (2, 3, 1, 5), (2, 3, 1, 5), (6,), (6,)],
            2 * 6 * 5 * 10, 2 * 6 * 5 * 10, id="scan-one-state",
        ),
        pytest.param(
            "selective_scan",
            [(1, 4, 7), (1, 4, 7), (4, 3), (1, 2, 3, 7), (1, 2, 3, 7), (4,), (4,)],
            1 * 4 * 7 * 28, 1 * 4 * 7 * 28, id="scan-three-states",
        ),
        pytest.param(
            "cross_selective_scan",
            [(2, 2, 3, 4), (2, 2, 3, 4 * (5 + 2)), (16, 5), (16, 1), (16,), (16,)],
            2 * 6 * 16 * (10 + 5), 2 * 6 * 16 * 10, id="cross-scan-with-its-projection",
        ),
        pytest.param(
            "linear_cross_attention",
            [(2, 3, 4, 5), (2, 3, 4, 7), (2, 3, 4, 7), (3,)],
            2 * 3 * 4 * 4 * (5 + 7), 0, id="linear-cross-attention",
        ),
    ],
)  # fmt: skip
def test_operations(op, shapes, macs, scans):
    arguments = [torch.empty(shape, device="meta") for shape in shapes]
    for formulas, expected in ((FLOPS, macs), (SCAN_FLOPS, scans)):
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            getattr(tfanet.ops, op)(*arguments)
        assert counter.get_total_flops() == 2 * expected


def test_every_operation_is_counted():
    operations = set(tfanet.ops.__all__) - {"use_scan_kernel"}
    assert {getattr(torch.ops.tfanet, name) for name in operations} == set(FLOPS)


@pytest.fixture(scope="module")
def counted():
    return {row.name: count_row(row) for row in TABLE_4}


@pytest.mark.parametrize("row", TABLE_4, ids=lambda row: row.name)
def test_table_4(row, counted):
    ours = counted[row.name]
    assert ours.parameters == pytest.approx(row.parameters, rel=0.03)
    assert ours.macs == pytest.approx(row.macs, rel=0.10)
    assert 0 < ours.scans < 0.02 * ours.macs


def test_vmamba_counts_equal_the_published_ones():
    """VMamba-B, 224 x 224: 89 M parameters with the classifier, 15.4 G."""
    encoder = count_parts(preset("base", image_size=224))["vmamba"]
    classifier = 1024 * 1000 + 1000 + 2 * 1024
    assert round((encoder.parameters + classifier) / 1e6) == 89
    assert encoder.macs + 1024 * 1000 == pytest.approx(15.4e9, rel=0.01)


def test_conv_decoder_by_hand():
    config = preset("tiny", decoder="conv", conv_decoder_dim=10)
    sides = [24, 12, 6, 3]
    lateral = sum(c * 10 * side**2 for c, side in zip(config.vmamba_dims, sides, strict=True))
    merge = sum(9 * 10 * 10 * side**2 for side in sides[:3])
    refine, score = 9 * 10 * 10 * 48**2, 10 * 2 * 48**2
    expected = Count(
        parameters=sum(config.vmamba_dims) * 10 + 4 * 900 + 8 * 2 * 10 + 22,
        macs=lateral + merge + refine + score,
        scans=0,
    )
    assert count_parts(config)["decoder"] == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_sum_to_the_model(variant):
    config = preset("tiny", **VARIANTS[variant])
    parts = count_parts(config)
    with torch.device("meta"):
        model = tfanet.TFANet(config).eval()
        image, tokens = torch.zeros(1, 96, 96, 3, dtype=torch.uint8), torch.zeros(1, 17, dtype=torch.int64)
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        model(image, tokens)
    assert tuple(parts) == PARTS
    assert all(part.macs > 0 for part in parts.values())
    assert total(parts).macs == counter.get_total_flops() / 2
    assert total(parts).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_command_prints_table_4(counted, monkeypatch, capsys):
    assert call(monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    for row in TABLE_4:
        ours = counted[row.name]
        line = next(line for line in lines if line.strip().startswith(f"({row.name})"))
        expected = [f"{ours.scans / 1e9:.2f}"]
        for value, paper, unit in ((ours.macs, row.macs, 1e9), (ours.parameters, row.parameters, 1e6)):
            expected[:0] = [f"{value / unit:.2f}", f"{paper / unit:.2f}", f"{value / paper - 1:+.1%}"]
        assert line.removeprefix(f" ({row.name}) {row.what}").split() == expected


@pytest.mark.parametrize("model", ["--preset tiny", f"--checkpoint {bundled('tiny')}"])
def test_command_prints_the_parts(model, monkeypatch, capsys):
    assert call(monkeypatch, *model.split()) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    parts = count_parts(preset("tiny"))
    for name, part in {**parts, "all": total(parts)}.items():
        values = (part.parameters, part.macs, part.scans)
        assert [name, *(f"{value / 1e6:.2f}" for value in values)] in lines
    assert "alignment mlam, fusion cfsm, decoder wfdm" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--preset", "base", "--checkpoint", "model.safetensors"], "give one of them"),
        (["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
    ],
    ids=["unknown-preset", "both", "no-file"],
)
def test_invalid_options_give_one_line(arguments, message, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
