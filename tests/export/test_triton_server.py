"""The repository and the client example with a real Triton server.

`nvidia-pytriton` ships Triton 2.51 with the Python backend only, so the core model uses that backend; the
rest of its configuration is as written.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

import numpy as np
import pytest
from fetched import Unavailable, fetch
from PIL import Image

from tfanet.data.images import open_image
from tfanet_engines import open_engine
from tfanet_eval.prediction import predict
from tfanet_export.triton_server.repository import write_repository

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "tests" / "photos" / "grace_hopper.jpg"
EXAMPLE = ROOT / "examples" / "triton_client.py"
SERVER = ["nvidia-pytriton==0.7.0"]
NUMPY = ["numpy==1.26.4"]
"""The version in NVIDIA's images: the Python backend of Triton 2.51 passes wrong arrays to NumPy 2."""
CLIENT = [
    "tritonclient==2.73.0", "geventhttpclient==2.6.1", "gevent==26.9.0", "greenlet==3.3.2", "zope.event==6.2",
    "zope.interface==8.7", "brotli==1.2.1", "certifi==2026.10.19.post1", "python-rapidjson==1.25",
    "urllib3==2.8.0",
]  # fmt: skip
SECONDS_TO_START = 120
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def packages(pytestconfig: pytest.Config) -> dict[str, Path]:
    """Folders of the packages that a server and a client need; 90 MB to download, 290 MB unpacked."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("the wheel of Triton's server is for Linux on x86-64")
    if not (Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("LDLIBRARY")).is_file():
        pytest.skip("this Python has no shared library for Triton's Python backend")
    cache = pytestconfig.cache.mkdir("triton")
    groups = {"server": SERVER, "numpy": NUMPY, "client": CLIENT}
    try:
        return {name: fetch(cache / f"{names[0]}-{PYTHON}", names) for name, names in groups.items()}
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def repository(small_engine: Path, tmp_path: Path) -> Path:
    written = write_repository(tmp_path / "models", [small_engine], name="finder", max_batch=2)
    core = written.path / written.core_model
    config = core / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    assert text.count('backend: "onnxruntime"') == 1
    config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("core_model.py"), core / "1" / "model.py")
    return written.path


@pytest.fixture
def server(packages: dict[str, Path], repository: Path, tmp_path: Path):
    """The address of a Triton server that serves the repository."""
    triton = packages["server"] / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"the wheel of Triton's server has no Python backend for Python {PYTHON}")
    backend = tmp_path / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (*(triton / "backends" / "python").iterdir(), stub):
        (backend / file.name).symlink_to(file)
    # The backend uses the packages of the first `python3` on the path.
    environment = tmp_path / "python"
    venv.create(environment, symlinks=True, with_pip=False)
    paths = (packages["numpy"], Path(sysconfig.get_path("purelib")))
    (site,) = environment.glob("lib/*/site-packages")
    (site / "packages.pth").write_text("".join(f"{path}\n" for path in paths))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [triton / "bin" / "tritonserver", f"--model-repository={repository}"]
    command += [f"--backend-directory={tmp_path / 'backends'}", "--exit-timeout-secs=1"]
    command += ["--allow-grpc=false", "--allow-metrics=false", "--http-address=127.0.0.1"]
    command += [f"--http-port={address.split(':')[1]}"]
    variables = {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"),
    }
    log = tmp_path / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=os.environ | variables, stdout=file, stderr=file, start_new_session=True
        )
    try:
        assert ready(process, address), log.read_text(encoding="utf-8", errors="replace")[-5000:]
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ready(process: subprocess.Popen, address: str) -> bool:
    """Wait until the server is ready with all models; False if it exits or times out."""
    end = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    return False


def test_client_gets_the_mask_of_predict_from_a_real_server(
    packages, server, repository, small_engine, tmp_path
):
    def ask(*arguments, url=server):
        return subprocess.run(
            [sys.executable, EXAMPLE, *arguments, "--url", url, "--model", "finder"],
            env=os.environ | {"PYTHONPATH": str(packages["client"])},
            capture_output=True,
            text=True,
        )

    # The warm-up ran the core model at its smallest and largest batch.
    assert (repository / "finder_core" / "1" / "batches.txt").read_text().split() == ["1", "2"]
    done = ask(PHOTO, "Red mug’s", "-o", tmp_path / "mask.png")
    assert done.returncode == 0, done.stderr
    with open_engine(small_engine, providers=["CPUExecutionProvider"], threads=1) as engine:
        expected = predict(engine, open_image(PHOTO), "Red mug’s") > 0
    assert 0.05 < expected.mean() < 0.95
    with Image.open(tmp_path / "mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), np.where(expected, 255, 0))
    assert f"of {expected.shape[1]} x {expected.shape[0]} pixels" in done.stdout

    done = ask(PHOTO, "the red mug on the left", "-o", tmp_path / "none.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert "has 8 tokens, the model takes 5: shorten" in done.stderr
    assert done.stderr.count("\n") == 1
    done = ask(PHOTO, "red mug", url="127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "none.png").exists()
