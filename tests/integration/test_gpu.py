"""On a real GPU: what ``fake_gpu`` only plays. Skipped where there is none."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime
import pytest

from worker.model.cuda import LIBRARY, Driver
from worker.model.session import load
from worker.serving.engine import OUT_OF_MEMORY

pytestmark = pytest.mark.gpu
TESTS = Path(__file__).resolve().parent.parent
MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def device() -> Driver:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("the installed ONNX Runtime has no CUDA provider")
    try:
        return Driver()
    except Exception as error:
        pytest.skip(f"no GPU: {error}")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose convolutions are planned again for every size."""
    sys.path.insert(0, str(TESTS / "bench"))
    import resnet

    return resnet.write(tmp_path_factory.mktemp("network") / "resnet.onnx", side=64)


@pytest.mark.parametrize(
    ("content", "shape", "dtype"),
    [
        (models.mlp(), (7, 20), np.float32),
        (models.image(dtype=np.uint8), (3, 3, 28, 28), np.uint8),
        (models.image(size=None, dtype=np.uint8), (3, 3, 31, 17), np.uint8),
        (models.two_outputs(), (5, 4), np.float32),
        (models.identity(np.float16), (5, 4), np.float16),
        (models.identity(np.int64), (5, 4), np.int64),
        (models.fixed_batch(8), (8, 4), np.float32),
        (models.slow(steps=20, width=64), (9, 64), np.float32),
    ],
    ids=["mlp", "image", "any size", "two outputs", "float16", "int64", "eight rows", "deep"],
)
def test_answers_are_those_of_the_cpu(tmp_path: Path, content: bytes, shape: Any, dtype: Any) -> None:
    """Bound, copied and computed elsewhere, and the same."""
    path = models.write(tmp_path, content)
    feeds = {"x": np.random.default_rng(1).integers(0, 50, shape).astype(dtype)}
    gpu, cpu = load(path, providers=["cuda", "cpu"]), load(path)
    assert gpu.provider == "cuda"
    assert gpu.signature == cpu.signature
    for _ in range(3):
        for answer, right in zip(gpu.run(feeds).values(), cpu.run(feeds).values(), strict=True):
            assert answer.dtype == right.dtype
            np.testing.assert_allclose(answer, right, atol=1e-2 * np.abs(right).max(initial=0))
    assert gpu.canary()


def test_many_threads_and_sizes_keep_apart(network: Path) -> None:
    """Two instances, padded sizes, eight threads: each batch gets its own answers."""
    model = load(network, providers=["cuda", "cpu"], instances=2)
    assert model.warm(32, 1 << 30) == 32
    frames = np.random.default_rng(2).integers(0, 256, (32, 64, 64, 3), np.uint8)
    frames[:, :32] //= np.arange(1, 33, dtype=np.uint8)[:, None, None, None]
    right = load(network).run({"frames": frames})["scores"].astype(np.float64)

    def ask(number: int) -> float:
        rows = slice(number % 29, number % 29 + 1 + number % 3 * (number % 7))
        answer = model.run({"frames": frames[rows]})["scores"].astype(np.float64)
        return float(np.linalg.norm(answer - right[rows]) / np.linalg.norm(right[rows]))

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(ask, range(300))) < 5e-3


@pytest.fixture
def full(device: Driver) -> Iterator[None]:
    """A device with 200 MiB left."""
    library = ctypes.CDLL(LIBRARY)
    free, total, taken = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
    device.synchronize(device.stream())  # makes the context this thread's
    library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    assert library.cuMemAlloc_v2(ctypes.byref(taken), ctypes.c_size_t(free.value - 200 * MIB)) == 0
    yield
    library.cuMemFree_v2(taken)


def test_a_batch_too_large_is_told_and_a_small_one_goes_on(network: Path, request: Any) -> None:
    """The error says out of memory in words the engine knows, and the model is not sick."""
    model = load(network, providers=["cuda", "cpu"])
    frames = np.zeros((2048, 64, 64, 3), np.uint8)
    request.getfixturevalue("full")
    with pytest.raises(Exception, match=r".") as caught:
        model.run({"frames": frames})
    assert any(words in str(caught.value).lower() for words in OUT_OF_MEMORY), caught.value
    assert model.canary()
    assert model.run({"frames": frames[:4]})["scores"].shape == (4, 1000)


def test_an_illegal_access_stays_and_the_process_can_still_leave(network: Path) -> None:
    """Every later run fails, the canary too, and the exit code is the one asked for."""
    script = f"""
        import sys
        import numpy as np, onnxruntime
        from pathlib import Path
        from worker.model.session import load
        model = load(Path({str(network)!r}), providers=["cuda", "cpu"])
        session = onnxruntime.InferenceSession({str(network)!r}, providers=["CUDAExecutionProvider"])
        binding = session.io_binding()
        binding.bind_input("frames", "cuda", 0, np.uint8, [1, 64, 64, 3], 0x7000DEADB000)
        binding.bind_output("scores", "cuda", 0)
        try:
            session.run_with_iobinding(binding)
        except Exception:
            pass
        try:
            model.run({{"frames": np.zeros((1, 64, 64, 3), np.uint8)}})
        except Exception as error:
            print(type(error).__name__, error)
        print("canary", model.canary())
        sys.exit(7)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=100
    )
    assert "(700)" in done.stdout or "failure 700" in done.stdout, done.stdout + done.stderr
    assert "canary False" in done.stdout
    assert done.returncode == 7
