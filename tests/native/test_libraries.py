"""The libraries as files: what they depend on; and loading them, or not, in fresh processes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ratfast import native

STATUS = native.status()
LIBRARIES = [path for path in (STATUS.cpu_library, STATUS.cuda_library, STATUS.core) if path is not None]
ROOT = Path(__file__).parents[2]

# Prints digests of what the operators compute, in every element type, from fixed inputs: of sums and reductions,
# which are the same everywhere; of inner products, which are the same in all native code; of norms; of steps.
DIGEST = """
import hashlib, torch
from ratfast import native, ops
torch.manual_seed(0)
sizes = (1, 77, 5000)
exact, products, norms, adam = (hashlib.sha256() for _ in range(4))
worst = 0.0
def note(digest, tensors):
    for tensor in tensors:
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    sources = [[torch.randn(size).to(dtype) for size in sizes] for _ in range(7)]
    for count in (1, 2, 6, 15):
        outputs = [[torch.empty(size, dtype=dtype) for size in sizes] for _ in range(count)]
        ops.mix_(outputs, sources, torch.randn(count, 7, dtype=torch.float64))
        note(exact, [x for model in outputs for x in model])
    for kind in ("min", "max", "fisher", "sum", "elect"):
        dropping = {"densities": [0.5] * 7, "thresholds": torch.full((3, 7), 0.3)}
        of_base = kind in ("sum", "elect")
        for options in [{}, dropping] if of_base else [{}]:
            models = sources[:6] if kind == "fisher" else sources
            ops.combine_(outputs[0], models, sources[0] if of_base else None, kind, **options)
            note(exact, outputs[0])
    note(exact, [ops.kth_magnitudes(sources[0], sources[1], [1, 30, 777])])
    note(products, [ops.gram(sources)])
    lists = [[torch.rand(3001).to(dtype)] for _ in range(6)]
    steps, number = torch.zeros(1), torch.zeros((), dtype=torch.float64)
    for _ in range(3):
        extras = ops.StepExtras(averages=lists[5], average_weight=0.1, multiplier=number + 0.3)
        ops.adam_step_(*lists[:5], steps, lr=0.01, weight_decay=0.1, amsgrad=True, extras=extras)
        ops.sgd_step_(lists[0], lists[1], lists[2], steps, lr=0.01, momentum=0.9)
    note(adam, [x[0] for x in lists])
    ops.gradient_norm_(lists[1], number, number.clone(), torch.zeros(()))
    note(norms, [number.reshape(1)])
    worst = max(worst, *(x[0].double().abs().sum().item() for x in lists))
digests = [x.hexdigest() for x in (exact, products, norms, adam)]
print(*digests, native.status().cpu_capability, worst)
"""


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        env=variables | environment,
        capture_output=True,
        text=True,
        check=True,
    )


# Stands for a device that the library loads beside and cannot run on: none has this number.
UNUSABLE = """
import types, torch
from ratfast import native, ops
assert native.covers("cuda") and not torch.cuda.is_initialized()
absent = types.SimpleNamespace(device=torch.device("cuda", 99))
for _ in range(2):
    ops.registration.check_cuda([absent])
assert not native.covers("cuda") and native.covers("cpu")
for name in ("mix_", "gram", "combine_", "adam_step_", "sgd_step_", "gradient_norm_"):
    lines = torch._C._dispatch_dump(f"ratfast::{name}").splitlines()
    assert any(line.startswith("CUDA: ") and "ops/registration.py" in line for line in lines), lines
print(native.status().reason)
"""


@pytest.mark.skipif(STATUS.cuda_library is None or torch.version.cuda is None, reason="no CUDA library")
def test_a_cuda_library_that_cannot_run_leaves_its_work_to_torch():
    done = fresh(UNUSABLE)
    reason = done.stdout.strip()
    assert "libratfast_cuda.so" in reason and "cannot run on cuda:99 (" in reason
    assert done.stderr.count("runs on plain torch on CUDA devices") == 1 and reason in done.stderr


@pytest.mark.cuda
@pytest.mark.skipif(STATUS.cuda_library is None, reason="no CUDA library")
def test_the_cuda_library_runs_here(cuda):
    native.load_torch_libraries()
    assert native.check_cuda(cuda.index) and native.covers("cuda")


@pytest.mark.skipif(not LIBRARIES or shutil.which("nm") is None, reason="nothing built, or no nm")
@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_no_symbol_of_an_unstable_abi(path):
    symbols = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"\b_Z\w*(?:N2at|N3c10|N5torch)\w*", symbols) == []
    if path != STATUS.core:
        assert re.findall(r"\bPy\w*", symbols) == []
    else:
        assert re.findall(r"\b(?:aoti_)?torch_\w*", symbols) == []


@pytest.mark.skipif(not LIBRARIES or shutil.which("nm") is None, reason="nothing built, or no nm")
@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_libraries_export_nothing_of_the_core(path):
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
    ).stdout
    # But for what ratfast.native asks before the first call on a CUDA device.
    assert re.findall(r"\b\w*ratfast\w*", symbols) == ["ratfast_cuda_problem"] * (path == STATUS.cuda_library)


@pytest.mark.skipif(not LIBRARIES or shutil.which("readelf") is None, reason="nothing built, or no readelf")
@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_needed_libraries(path):
    needed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"NEEDED.*\[(.*)\]", needed)
    assert not [name for name in names if re.match("libcudart|libc10|libpython|libtorch_python", name)]
    if path == STATUS.core:
        assert not [name for name in names if "torch" in name]


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("nm") is None, reason="no g++, or no nm")
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["-mavx2", "-mfma", "-mf16c"],
        ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    ],
    ids=["default", "avx2", "avx512"],
)
def test_loops_share_no_code_between_instruction_sets(flags, tmp_path):
    source = ROOT / "csrc/core/leaf.cpp"
    if not source.is_file():
        pytest.skip("no sources here")
    if flags and native.build_info().get("machine") != "x86_64":
        pytest.skip("not x86-64")
    leaf = tmp_path / "leaf.o"
    # Without optimisation nothing is inlined that need not be: the hardest case.
    command = [
        "g++",
        "-std=c++20",
        "-O0",
        "-fno-exceptions",
        "-w",
        *flags,
        "-DRATFAST_LEAF=leaf_test",
        "-c",
        source,
        "-o",
        leaf,
    ]
    subprocess.run(command, check=True)
    symbols = subprocess.run(["nm", "-C", leaf], capture_output=True, text=True, check=True).stdout
    shared = [
        line for line in symbols.splitlines() if re.match(r"[0-9a-f ]{16} [A-TV-Z]", line) or " u " in line
    ]
    assert [line.split(maxsplit=2)[2] for line in shared] == ["ratfast::leaf_test"]
    undefined = {line.split()[-1] for line in symbols.splitlines() if line.lstrip().startswith("U ")}
    assert undefined <= {
        "exp",
        "log",
        "memcpy",
        "memset",
        "sqrt",
        "sqrtf",
        "_GLOBAL_OFFSET_TABLE_",
        "__stack_chk_fail",
    }


@pytest.mark.skipif(STATUS.cpu_capability is None, reason="the module _core is not built")
def test_instruction_sets_agree(native_cpu):
    results = {}
    for wish in ("avx512", "avx2", "default"):
        *digests, capability, total = fresh(DIGEST, RATFAST_CPU_CAPABILITY=wish).stdout.split()
        results[capability] = (digests, float(total))
    first = results["default"]
    for digests, total in results.values():
        assert digests[:3] == first[0][:3]
        assert total == pytest.approx(first[1], rel=1e-5)
    # The fused operations of steps round alike at any width; the default may have none.
    if {"avx512", "avx2"} <= set(results):
        assert results["avx512"][0] == results["avx2"][0]


def test_plain_torch_computes_the_same_sums(native_cpu):
    native_digest = fresh(DIGEST).stdout.split()[0]
    assert fresh(DIGEST, RATFAST_NATIVE="0").stdout.split()[0] == native_digest


def test_disabled_library_warns_once_and_computes_the_same():
    code = (
        "import torch\nfrom ratfast import native, ops\nnative.load_torch_libraries()\nout = torch.empty(3)\n"
        "ops.mix_([[out]], [[torch.arange(3.0)], [torch.ones(3)]], [[2.0, 1.0]])\n"
        "print(out.tolist(), native.load_core(), native.status().loaded)"
    )
    done = fresh(code, RATFAST_NATIVE="0")
    assert done.stdout.strip() == "[1.0, 3.0, 5.0] None ()"
    assert done.stderr.count("RuntimeWarning") == 1
    assert "RATFAST_NATIVE=0" in done.stderr


def test_loaded_libraries_do_not_warn(native_cpu):
    assert "ratfast" not in fresh("from ratfast import ops").stderr


def test_missing_libraries_are_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    (tmp_path / "build_info.json").write_text('{"reason": "no C++ compiler was found"}')
    status = native.status()
    assert (status.cpu_library, status.cuda_library, status.core) == (None, None, None)
    assert "no C++ compiler was found" in status.reason


def test_a_broken_library_is_explained(tmp_path):
    (tmp_path / "libratfast_cpu.so").write_bytes(b"not a library")
    code = (
        f"from pathlib import Path\nfrom ratfast import native\nnative.FOLDER = Path({str(tmp_path)!r})\n"
        "from ratfast import ops\nimport torch\nout = torch.empty(1)\n"
        "ops.mix_([[out]], [[torch.ones(1)]], [[2.0]])\nprint(out.item(), native.status().reason)"
    )
    done = fresh(code)
    assert done.stdout.startswith("2.0 ")
    assert "libratfast_cpu.so does not load" in done.stdout
    assert done.stderr.count("RuntimeWarning") == 1


def test_status_does_not_import_torch():
    code = "import sys\nfrom ratfast import native\nnative.status()\nprint('torch' in sys.modules)"
    assert fresh(code).stdout.strip() == "False"


def test_build_record_names_no_folder_of_the_machine():
    assert not [
        value for value in native.build_info().values() if isinstance(value, str) and value.startswith("/")
    ]
    for path in LIBRARIES:
        assert str(ROOT).encode() not in path.read_bytes()
