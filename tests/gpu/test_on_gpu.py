"""Every runtime on a CUDA device compared with PyTorch on the CPU. Run by `make gpu-check`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import tfanet
from tfanet.data.refer import ReferDataset
from tfanet.data.transforms import TrainingPairs
from tfanet.ops import linear_cross_attention, selective_scan
from tfanet.training.loop import TrainingOptions, train
from tfanet.weights import bundled
from tfanet_engines import BuildOptions, build_plan, compare_logits, gate, open_engine
from tfanet_engines.targets import RTX_CAPABILITIES
from tfanet_export import export_onnx
from tfanet_export.export import retarget, verification_pairs

pytestmark = [pytest.mark.integration, pytest.mark.gpu]
PAIRS = 8


def scan_inputs(length, dtype):
    rng = torch.Generator().manual_seed(0)
    shapes = [(2, 8, length), (2, 8, length), (8, 1), (2, 4, 1, length), (2, 4, 1, length), (8,), (8,)]
    u, delta, A, B, C, D, bias = (torch.randn(shape, generator=rng) for shape in shapes)
    return [u.to(dtype), delta.to(dtype), -A.exp(), B.to(dtype), C.to(dtype), D, bias]


@pytest.mark.parametrize("length", [1, 17, 225, 3600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_selective_scan(length, dtype):
    inputs = scan_inputs(length, dtype)
    expected = selective_scan(*inputs).float()
    actual = selective_scan(*(x.cuda() for x in inputs)).float().cpu()
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert (actual - expected).abs().max() <= tolerance * max(1.0, expected.abs().max())


def test_gradients():
    scan = [x.requires_grad_() for x in scan_inputs(63, torch.float32)]
    rng = torch.Generator().manual_seed(1)
    attention = [torch.randn(1, 2, 4, n, generator=rng).requires_grad_() for n in (9, 30, 30)]
    attention.append(torch.ones(2, requires_grad=True))
    for operation, inputs in ((selective_scan, scan), (linear_cross_attention, attention)):
        expected = torch.autograd.grad(operation(*inputs).square().sum(), inputs)
        on_gpu = [x.detach().cuda().requires_grad_() for x in inputs]
        actual = torch.autograd.grad(operation(*on_gpu).square().sum(), on_gpu)
        for ours, right in zip(actual, expected, strict=True):
            torch.testing.assert_close(
                ours.cpu(), right, rtol=1e-3, atol=1e-3 * right.abs().max().item() + 1e-5
            )


@pytest.fixture(scope="module")
def pairs():
    """The bundled model's inputs and its CPU logits for them."""
    model = tfanet.load_model(bundled("tiny"))
    images, tokens, _ = verification_pairs(model, PAIRS)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images), torch.from_numpy(tokens)).numpy()
    return images, tokens, expected


def compare(engine, pairs):
    images, tokens, expected = pairs
    return compare_logits(expected, engine.infer(images, tokens))


def test_pytorch(pairs):
    with open_engine(bundled("tiny")) as engine:
        gate([compare(engine, pairs)], "fp32").require()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_runtime_cuda(pairs, precision, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(tfanet.load_model(bundled("tiny")), path, fp16=precision == "fp16", target="gpu")
    with open_engine(path, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]) as engine:
        gate([compare(engine, pairs)], precision).require()


@pytest.mark.parametrize("backend", ["tensorrt-rtx", pytest.param("tensorrt", marks=pytest.mark.tensorrt)])
def test_plan(pairs, tmp_path, backend):
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    if capability not in RTX_CAPABILITIES:
        pytest.skip(f"plans are not built for compute capability {capability}")
    onnx, plan = tmp_path / "model.onnx", tmp_path / "model.plan"
    export_onnx(tfanet.load_model(bundled("tiny")), onnx, fp16=True)
    network = retarget(onnx, tmp_path / "gpu.onnx", "gpu")
    assert build_plan(network, plan, BuildOptions(target=capability), backend=backend).backend == backend
    with open_engine(plan) as engine:
        engine.warm_up(PAIRS)
        gate([compare(engine, pairs)], "fp16").require()
        one = engine.infer(pairs[0][:1], pairs[1][:1])
        np.testing.assert_allclose(one, engine.infer(pairs[0], pairs[1])[:1], rtol=0, atol=0.1)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """An FP16 plan of the bundled model for this GPU, by TensorRT-RTX."""
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    if capability not in RTX_CAPABILITIES:
        pytest.skip(f"plans are not built for compute capability {capability}")
    folder = tmp_path_factory.mktemp("plan")
    onnx = folder / "model.onnx"
    export_onnx(tfanet.load_model(bundled("tiny")), onnx, fp16=True, target="gpu")
    return build_plan(
        onnx, folder / "model.plan", BuildOptions(target=capability), backend="tensorrt-rtx"
    ).plan


def on_gpu(pairs):
    return [torch.from_numpy(x).cuda() for x in pairs[:2]]


def test_cuda_tensors_give_the_same_logits_as_arrays(pairs, plan, tmp_path):
    onnx = tmp_path / "model.onnx"
    export_onnx(tfanet.load_model(bundled("tiny")), onnx, target="gpu")
    for file, tolerance in ((bundled("tiny"), 1e-3), (onnx, 1e-3), (plan, 0.1)):
        with open_engine(file) as engine:
            logits = engine.infer(*on_gpu(pairs))
            assert str(logits.device) == engine.device == "cuda:0"
            np.testing.assert_allclose(
                logits.cpu().numpy(), engine.infer(*pairs[:2]), rtol=0, atol=tolerance, err_msg=str(file)
            )


def test_cuda_graphs_do_not_change_the_logits(pairs, plan):
    with open_engine(plan, contexts=1) as replayed, open_engine(plan, cuda_graphs=False) as plain:
        for count in (1, PAIRS, 1, PAIRS):
            images, tokens = pairs[0][:count], pairs[1][:count]
            actual = replayed.infer(images, tokens)
            np.testing.assert_allclose(actual, plain.infer(images, tokens), rtol=0, atol=0.1)
        with replayed._pool.context() as context:
            assert context.graph_batches == [1, PAIRS]


def test_threads_share_contexts(pairs, plan):
    with open_engine(plan, contexts=2) as engine:
        expected = engine.infer(*pairs[:2])

        def infer(number):
            at = number % PAIRS
            one = slice(at, at + 1)
            if number % 2:
                return at, engine.infer(pairs[0][one], pairs[1][one])[0]
            inputs = [x[one] for x in on_gpu(pairs)]
            return at, engine.infer(*inputs).cpu().numpy()[0]

        with ThreadPoolExecutor(8) as threads:
            for at, logits in threads.map(infer, range(64)):
                np.testing.assert_allclose(logits, expected[at], rtol=0, atol=0.1)


def test_closing_frees_the_memory(pairs, plan):
    def memory_used():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free

    open_engine(plan).close()  # libraries stay loaded
    before = memory_used()
    for _ in range(5):
        with open_engine(plan) as engine:
            engine.infer(*pairs[:2])
    assert memory_used() - before < 64 << 20


def test_training(shapes_root, tmp_path):
    config = tfanet.PRESETS["tiny"]
    torch.manual_seed(0)
    data = TrainingPairs(
        ReferDataset(shapes_root, "refcoco", "train"), config.image_size, config.token_length
    )
    options = TrainingOptions(epochs=1, batch=8, device="cuda")
    assert train(tfanet.TFANet(config), data, data, tmp_path, options)
    assert tfanet.load_model(tmp_path / "model.safetensors").config == config
