"""The configurations of a model repository, parsed with the protobuf schema of Triton's client."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from fetched import Unavailable, fetch
from google.protobuf import text_format
from small_engines import CONFIG, write_plan

from tfanet.data.preprocess import tokenize
from tfanet_export.triton_server.repository import write_repository

CLIENT = "tritonclient==2.73.0"


@pytest.fixture(scope="module")
def schema(pytestconfig: pytest.Config):
    """The module `model_config_pb2` of `tritonclient`; imported alone, because the package needs gRPC."""
    try:
        folder = fetch(pytestconfig.cache.mkdir("triton") / CLIENT, [CLIENT])
    except Unavailable as error:
        pytest.skip(str(error))
    file = folder / "tritonclient" / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def read(schema, tmp_path):
    """`read(engines, **options)`: the configurations of the client model and of the core model."""

    def configurations(engines, **options):
        written = write_repository(tmp_path / "repository", engines, **options)
        names = (written.client_model, written.core_model)
        texts = [(written.path / name / "config.pbtxt").read_text(encoding="utf-8") for name in names]
        configs = [text_format.Parse(text, schema.ModelConfig()) for text in texts]
        assert [config.name for config in configs] == [*names]
        return configs

    return configurations


def tensors(schema, entries):
    return {entry.name: (schema.DataType.Name(entry.data_type), [*entry.dims]) for entry in entries}


def test_core_model_has_the_deployed_signature(schema, read, small_engine):
    _, core = read([small_engine])
    assert (core.backend, core.max_batch_size) == ("onnxruntime", 8)
    inputs = {"image": ("TYPE_UINT8", [32, 32, 3]), "tokens": ("TYPE_INT64", [5])}
    assert tensors(schema, core.input) == inputs
    assert tensors(schema, core.output) == {"mask_logits": ("TYPE_FP32", [32, 32])}
    assert core.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert core.version_policy.latest.num_versions == 1
    (group,) = core.instance_group
    assert (group.count, group.kind) == (1, schema.ModelInstanceGroup.KIND_AUTO)
    (cuda,) = core.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    assert not core.cc_model_filenames


def test_core_model_warms_up_with_valid_tokens_at_its_smallest_and_largest_batch(
    schema, read, small_engine, tmp_path
):
    _, core = read([small_engine])
    assert [warmup.batch_size for warmup in core.model_warmup] == [1, 8]
    declared = tensors(schema, core.input)
    for warmup in core.model_warmup:
        assert {
            name: (schema.DataType.Name(entry.data_type), [*entry.dims])
            for name, entry in warmup.inputs.items()
        } == declared
        assert warmup.inputs["image"].zero_data
        row = tmp_path / "repository" / core.name / "warmup" / warmup.inputs["tokens"].input_data_file
        tokens = np.frombuffer(row.read_bytes(), dtype="<i8")
        assert tokens.size == math.prod(warmup.inputs["tokens"].dims)
        np.testing.assert_array_equal(tokens, tokenize(["the red mug on the left"], CONFIG.token_length)[0])


def test_plans_are_chosen_by_compute_capability(schema, read, tmp_path):
    plans = [write_plan(tmp_path / f"{name}.plan", name) for name in ("8.9", "12.0")]
    client, core = read(plans)
    assert (core.backend, core.max_batch_size) == ("tensorrt", 4)
    assert dict(core.cc_model_filenames) == {"8.9": "sm89.plan", "12.0": "sm120.plan"}
    for plan in plans:
        name = core.cc_model_filenames[plan.stem]
        copied = tmp_path / "repository" / core.name / "1" / name
        assert copied.read_bytes() == plan.read_bytes()
    assert [group.kind for group in core.instance_group] == [schema.ModelInstanceGroup.KIND_GPU]
    assert not core.optimization.execution_accelerators.gpu_execution_accelerator
    assert [group.count for group in client.instance_group] == [4]


@pytest.mark.parametrize(("max_batch", "scheduler", "instances"), [(1, None, 2), (64, "dynamic_batching", 8)])
def test_batches_follow_max_batch(read, small_engine, max_batch, scheduler, instances):
    client, core = read([small_engine], max_batch=max_batch)
    assert core.max_batch_size == max_batch
    assert core.WhichOneof("scheduling_choice") == scheduler
    assert [warmup.batch_size for warmup in core.model_warmup] == [*dict.fromkeys((1, max_batch))]
    assert [group.count for group in client.instance_group] == [instances]


def test_client_model_takes_images_of_any_size(schema, read, small_engine):
    client, core = read([small_engine], name="finder")
    assert (client.backend, client.max_batch_size) == ("python", 0)
    assert tensors(schema, client.input) == {
        "image_file": ("TYPE_UINT8", [-1]),
        "image": ("TYPE_UINT8", [-1, -1, 3]),
        "sentence": ("TYPE_STRING", [1]),
    }
    assert [entry.name for entry in client.input if entry.optional] == ["image_file", "image"]
    expected = {"mask": ("TYPE_UINT8", [-1, -1]), "mask_logits": ("TYPE_FP32", [-1, -1])}
    assert tensors(schema, client.output) == expected
    parameters = {key: entry.string_value for key, entry in client.parameters.items()}
    assert parameters == {"core_model": core.name, "image_size": "32", "token_length": "5"}
    assert [group.kind for group in client.instance_group] == [schema.ModelInstanceGroup.KIND_CPU]
