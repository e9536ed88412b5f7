"""The configurations of the two models of a repository, as text in Triton's protobuf format."""

from __future__ import annotations

from collections.abc import Sequence

from tfanet.config import TFANetConfig
from tfanet.signature import BATCH, TensorSpec, signature_of

TYPES = {"uint8": "TYPE_UINT8", "int64": "TYPE_INT64", "float32": "TYPE_FP32"}
WARMUP_TOKENS = "tokens"
"""The file in the core model's folder `warmup` with one row of tokens."""
MAX_CLIENT_INSTANCES = 8


def core_config(
    name: str,
    config: TFANetConfig,
    *,
    backend: str,
    max_batch: int,
    plans: dict[str, str],
    note: str,
) -> str:
    """`config.pbtxt` of the model that computes the logits.

    `backend` is `tensorrt` or `onnxruntime`. `plans` maps compute capabilities to file names. `note` becomes
    the first comment.
    """
    signature = signature_of(config)
    lines = [
        f"# {note}",
        f'name: "{name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {max_batch}",
        *_tensors("input", signature.inputs),
        *_tensors("output", signature.outputs),
        f"instance_group [ {{ count: 1 kind: {'KIND_GPU' if backend == 'tensorrt' else 'KIND_AUTO'} }} ]",
        "version_policy { latest { num_versions: 1 } }",
    ]
    if max_batch > 1:
        lines += [
            "# Requests in the queue are merged into a batch; none waits for later ones.",
            "dynamic_batching { }",
        ]
    if backend == "onnxruntime":
        lines += [
            "# No TF32 on a GPU.",
            'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "cuda" '
            'parameters { key: "use_tf32" value: "0" } } ] } }',
        ]
    lines += [f'cc_model_filenames {{ key: "{key}" value: "{file}" }}' for key, file in sorted(plans.items())]
    for batch in dict.fromkeys((1, max_batch)):
        lines += _warmup(batch, signature.image, signature.tokens)
    return "\n".join(lines) + "\n"


def client_config(name: str, core: str, config: TFANetConfig, *, max_batch: int) -> str:
    """`config.pbtxt` of the model that clients call, which is `model.py`."""
    parameters = {
        "core_model": core,
        "image_size": config.image_size,
        "token_length": config.token_length,
    }
    lines = [
        f'name: "{name}"',
        'backend: "python"',
        "# Images differ in size: not batched here, but by the core model.",
        "max_batch_size: 0",
        "input [",
        '  { name: "image_file" data_type: TYPE_UINT8 dims: [ -1 ] optional: true },',
        '  { name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] optional: true },',
        '  { name: "sentence" data_type: TYPE_STRING dims: [ 1 ] }',
        "]",
        "output [",
        '  { name: "mask" data_type: TYPE_UINT8 dims: [ -1, -1 ] },',
        '  { name: "mask_logits" data_type: TYPE_FP32 dims: [ -1, -1 ] }',
        "]",
        "# An instance waits while the core model computes, so this many requests can share a batch.",
        f"instance_group [ {{ count: {max(2, min(max_batch, MAX_CLIENT_INSTANCES))} kind: KIND_CPU }} ]",
        "version_policy { latest { num_versions: 1 } }",
        *(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in parameters.items()),
    ]
    return "\n".join(lines) + "\n"


def _tensors(field: str, specs: Sequence[TensorSpec]) -> list[str]:
    """One field for each tensor; Triton's dimensions exclude the batch."""
    return [
        f'{field} [ {{ name: "{spec.name}" data_type: {TYPES[spec.dtype]} dims: [ {_dims(spec)} ] }} ]'
        for spec in specs
    ]


def _warmup(batch: int, image: TensorSpec, tokens: TensorSpec) -> list[str]:
    """A batch of black images to run before the model is ready; its tokens are valid ids."""
    inputs = ((image, "zero_data: true"), (tokens, f'input_data_file: "{WARMUP_TOKENS}"'))
    return [
        "model_warmup {",
        f'  name: "batch {batch}"',
        f"  batch_size: {batch}",
        *(
            f'  inputs {{ key: "{spec.name}" value {{ data_type: {TYPES[spec.dtype]} '
            f"dims: [ {_dims(spec)} ] {data} }} }}"
            for spec, data in inputs
        ),
        "}",
    ]


def _dims(spec: TensorSpec) -> str:
    return ", ".join(str(size) for size in spec.shape if size != BATCH)
