"""PyTorch -> ONNX: the graph with one node for each `tfanet` operation, and the check of its contract."""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tfanet.blocks import hook_blocks, tensors_of
from tfanet.config import TFANetConfig
from tfanet.errors import VerificationError
from tfanet.model import TFANet
from tfanet.signature import BATCH, MAX_BATCH, Signature, TensorSpec, signature_of
from tfanet_export.functions import function_protos, register_schemas
from tfanet_plugins import mark_plugin_nodes
from tfanet_plugins.operations import DOMAIN, DOMAIN_VERSION, OPERATIONS, OPSET, Operation, Target

if TYPE_CHECKING:
    import onnx


def trace(model: TFANet, target: Target) -> onnx.ModelProto:
    """The deployed graph of `model` (see `deploy.deployment_model`) with the function bodies for `target`.

    Only the batch is dynamic. Raises `VerificationError` when the graph breaks its contract (`check_graph`).
    """
    signature = signature_of(model.config)
    proto = _exported(model, model.config, target, [spec.name for spec in signature.outputs])
    check_graph(proto, signature)
    return proto


def trace_with_blocks(model: TFANet, target: Target) -> tuple[onnx.ModelProto, dict[str, list[str]]]:
    """`trace` with the outputs of every block as extra outputs of the graph, and their names by block.

    For inspection, not for deployment: extra outputs keep the runtime from fusing operations.
    """
    hooked = _BlockOutputs(model)
    with torch.inference_mode():
        hooked(*example_inputs(model))
    names = {block: [f"{block}/{i}" for i in range(count)] for block, count in hooked.counts.items()}
    logits = [spec.name for spec in signature_of(model.config).outputs]
    outputs = logits + [name for some in names.values() for name in some]
    return _exported(hooked, model.config, target, outputs), names


class _BlockOutputs(nn.Module):
    """A model that returns the mask logits, then its blocks' outputs as float32 in order of computation."""

    def __init__(self, model: TFANet) -> None:
        super().__init__()
        self.model = model
        self.counts: dict[str, int] = {}

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        extra: list[torch.Tensor] = []

        def hook(name: str, _block: object, _args: object, _kwargs: object, output: object) -> None:
            tensors = tensors_of(output)
            self.counts[name] = len(tensors)
            extra.extend(x.float() for x in tensors)

        with hook_blocks(self.model, hook):
            logits = self.model(image, tokens)
        return (logits, *extra)


def _exported(
    module: TFANet | _BlockOutputs, config: TFANetConfig, target: Target, outputs: Sequence[str]
) -> onnx.ModelProto:
    """The graph of `module` with function bodies; its outputs are named `outputs`."""
    register_schemas()
    image, tokens = example_inputs(module if isinstance(module, TFANet) else module.model)
    batch = torch.export.Dim(BATCH, min=1, max=MAX_BATCH)
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (image, tokens),
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in signature_of(config).inputs],
            output_names=list(outputs),
            dynamic_shapes=({0: batch}, {0: batch}),
            custom_translation_table=translations(),
        )
    assert program is not None
    proto = program.model_proto
    proto.functions.extend(functions_of(config, target))
    mark_plugin_nodes(proto)
    _strip_paths(proto)
    return proto


def functions_of(config: TFANetConfig, target: Target) -> list[onnx.FunctionProto]:
    """The function bodies for a model of `config`."""
    longest = max((config.image_size // 4) ** 2, 3 * config.vmamba_dims[-1])  # stage 1; CSSM of stage 4
    return function_protos(target, states=config.ssm_state, longest=longest)


def example_inputs(model: TFANet) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of batch 2 to trace with; the graph does not depend on their values."""
    size, length = model.config.image_size, model.config.token_length
    image = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    tokens = torch.zeros(2, length, dtype=torch.int64)
    tokens[:, 0], tokens[:, 1] = 49406, 49407
    return image, tokens


def check_graph(proto: onnx.ModelProto, signature: Signature) -> Counter[str]:
    """The number of nodes by operation; raises `VerificationError` when the graph breaks its contract.

    Contract: the signature's names, types and shapes; every node from ONNX or `tfanet`, with a function for
    each of the latter; no Loop, If or Scan in the graph itself.
    """
    counts: Counter[str] = Counter()
    functions = {function.name for function in proto.functions}
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx", DOMAIN):
            raise VerificationError(
                f"node {node.name} is {node.domain}::{node.op_type}; only ONNX and {DOMAIN} nodes are allowed"
            )
        if node.domain == DOMAIN and node.op_type not in functions:
            raise VerificationError(f"{DOMAIN}::{node.op_type} has no function body in the file")
        if node.domain != DOMAIN and node.op_type in ("Loop", "If", "Scan"):
            raise VerificationError(f"the graph contains {node.op_type} ({node.name})")
        counts[node.op_type if node.domain != DOMAIN else f"{DOMAIN}::{node.op_type}"] += 1
    _check_tensors("input", signature.inputs, proto.graph.input)
    _check_tensors("output", signature.outputs, proto.graph.output)
    return counts


def _check_tensors(kind: str, specs: Sequence[TensorSpec], values: Sequence[onnx.ValueInfoProto]) -> None:
    expected, actual = Counter(spec.name for spec in specs), Counter(value.name for value in values)
    if missing := expected - actual:
        raise VerificationError(f"the graph lacks the {kind} {', '.join(missing)}")
    if extra := actual - expected:
        raise VerificationError(f"the graph has the unexpected {kind} {', '.join(extra)}")
    for spec, value in zip(specs, values, strict=True):
        shape = tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        dtype = _dtype_name(value.type.tensor_type.elem_type)
        if (value.name, dtype, shape) != (spec.name, spec.dtype, spec.shape):
            raise VerificationError(
                f"{value.name} {dtype} {shape} should be {spec.name} {spec.dtype} {spec.shape}"
            )


def _dtype_name(elem_type: int) -> str:
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(elem_type).name


def translations(operations: Iterable[Operation] = OPERATIONS) -> dict[Callable, Callable]:
    """The exporter's `custom_translation_table`: PyTorch operation -> function that emits one ONNX node."""
    return {
        getattr(torch.ops.tfanet, operation.torch_name).default: _translation(operation)
        for operation in operations
    }


def _translation(operation: Operation) -> Callable:
    """A function that emits one node of `operation`; the node's body is appended to the model afterwards."""
    from onnxscript.values import Opset

    emit = getattr(Opset(DOMAIN, DOMAIN_VERSION), operation.onnx_type)
    names = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in operation.input_names]
    parameters = inspect.Signature(names)

    def translate(*args: Any, **kwargs: Any) -> Any:
        return emit(*parameters.bind(*args, **kwargs).args)

    translate.__signature__ = parameters  # pyright: ignore  # the exporter reads the parameters' names
    return translate


def _strip_paths(proto: onnx.ModelProto) -> None:
    """Remove the exporter's metadata of nodes: stack traces with paths, larger than the graph."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
