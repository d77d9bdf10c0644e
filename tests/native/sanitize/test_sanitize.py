"""The CPU's loops under the compilers' sanitizers, on every instruction set that this machine has."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = HERE.parents[2] / "csrc/core"
X86 = platform.machine() in ("x86_64", "AMD64")
# As in CMakeLists.txt.
LEAVES = {"default": []} | (
    {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    }
    if X86
    else {}
)
FLAGS = {
    "sha256_blocks_x86.cpp": ["-mavx", "-msha"] if X86 else [],
    "sha256_blocks_avx512.cpp": ["-mavx512f", "-mavx512bw"] if X86 else [],
}
SANITIZERS = {"address": "address,undefined", "thread": "thread"}
ROUNDS = {"address": 40, "thread": 12}


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++").split()[0])
    if found is None or not CORE.is_dir():
        pytest.skip("no C++ compiler, or no sources here")
    return found


@pytest.fixture(scope="module", params=SANITIZERS)
def driver(request, tmp_path_factory) -> tuple[Path, int]:
    """The driver, built with a sanitizer, and how many rounds it shall run."""
    folder = tmp_path_factory.mktemp("sanitize")
    flags = ["-std=c++20", "-O1", "-g1", "-w", "-ffp-contract=off", "-fno-omit-frame-pointer"]
    flags += [f"-fsanitize={SANITIZERS[request.param]}", "-fno-sanitize-recover=all", f"-I{CORE}"]
    (folder / "empty.cpp").write_text("int main() {}\n")
    probe = subprocess.run(
        [compiler(), *flags, folder / "empty.cpp", "-o", folder / "empty"], capture_output=True, check=False
    )
    if probe.returncode != 0 or subprocess.run([folder / "empty"], check=False).returncode != 0:
        pytest.skip(f"the compiler lacks the runtime of the sanitizer {request.param}")

    jobs = []
    for name, extra in LEAVES.items():
        jobs.append((CORE / "leaf.cpp", name, [*extra, f"-DRATFAST_LEAF=leaf_{name}"]))
        image = [*extra, f"-DRATFAST_IMAGE_LEAF=image_leaf_{name}"]
        jobs.append((CORE / "image_leaf.cpp", f"image_{name}", image))
    sources = [path for path in sorted(CORE.glob("*.cpp")) if path.name not in ("leaf.cpp", "image_leaf.cpp")]
    jobs += [(path, path.stem, FLAGS.get(path.name, [])) for path in [HERE / "driver.cpp", *sources]]

    def build(job) -> Path:
        path, name, extra = job
        target = folder / f"{name}.o"
        subprocess.run([compiler(), *flags, *extra, "-c", path, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(build, jobs))
    subprocess.run([compiler(), *flags, *objects, "-o", folder / "driver", "-lpthread"], check=True)
    return folder / "driver", ROUNDS[request.param]


@pytest.mark.parametrize("capability", LEAVES)
def test_nothing_to_report(driver, capability):
    path, rounds = driver
    done = subprocess.run(
        [path, str(rounds)],
        env=os.environ | {"RATFAST_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    if done.stdout.strip() != capability:
        pytest.skip(f"this machine lacks {capability}")
