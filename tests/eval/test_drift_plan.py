"""The plan of `tfanet-eval drift` that outputs every block: built without a GPU, run only with one."""

from __future__ import annotations

import pytest
import torch

from tfanet.blocks import blocks_of
from tfanet_engines.options import BuildOptions
from tfanet_engines.sidecar import Sidecar
from tfanet_eval.drift.plan import build_plan_with_blocks, plan_with_blocks

pytest.importorskip("tensorrt_rtx")


def test_without_a_gpu_the_reason_is_given(random_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with plan_with_blocks(random_model) as (run, reason):
        assert run is None
        assert "no NVIDIA GPU" in reason


@pytest.mark.slow
def test_plan_outputs_every_block(random_model, tmp_path):
    options = BuildOptions(target="rtx4090", batch=(1, 1, 1))
    plan, blocks = build_plan_with_blocks(random_model, tmp_path, options)
    assert set(blocks) == set(blocks_of(random_model))  # in the order of the graph
    names = [spec.name for specs in blocks.values() for spec in specs]
    assert Sidecar.read(plan).proof["further_outputs"] == names
    assert len(names) == 46
    assert blocks["text.norm"][0].shape == ("batch", 17, 64)
    assert plan.stat().st_size > 1e6
