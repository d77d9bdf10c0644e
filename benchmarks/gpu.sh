#!/usr/bin/env bash
# Builds, tests and measures on a machine with a GPU, without network:
#
#     benchmarks/gpu.sh DIR
#
# Writes into DIR: summary.json (each step, its exit status and seconds), machine.json, the records of
# the benchmarks and log.txt. A failing step does not stop the following ones; the exit status is 1 if any failed.
# Environment: PYTHON (python3), STEPS (all; a list such as "build tests" for some), TRAIN (arguments of ratfast-train
# for the demonstration), CUDA_HOME, TORCH_CUDA_ARCH_LIST.
set -u -o pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
results=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python3}
steps=${STEPS:-machine build tests memcheck racecheck optimizers averaging training_step images train}
log=$results/log.txt
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export RATFAST_REQUIRE_CUDA=1
: >"$log"
records=()
failed=0

step() { # NAME SECONDS COMMAND...: runs the command if the step is asked for
    local name=$1 limit=$2 status start
    shift 2
    case " $steps " in *" $name "*) ;; *) return 0 ;; esac
    echo "== $name" | tee -a "$log"
    start=$(date +%s.%N)
    timeout -k 10 "$limit" "$@" 2>&1 | tee -a "$log"
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || failed=1
    records+=("$(printf '{"step": "%s", "status": %d, "seconds": %.1f}' "$name" "$status" \
        "$(echo "$(date +%s.%N) $start" | awk '{print $1 - $2}')")")
    write_summary
}

write_summary() {
    local IFS=,
    printf '{"commit": "%s", "failed": %s, "steps": [%s]}\n' \
        "$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
        "$([ $failed -eq 0 ] && echo false || echo true)" "${records[*]-}" >"$results/summary.json"
}

machine() {
    "$python" - "$results/machine.json" <<'PYTHON'
import json, platform, subprocess, sys
import torch, torchvision

def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return None

properties = torch.cuda.get_device_properties(0)
record = {
    "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
    "cuda": torch.version.cuda, "gpu": properties.name, "capability": list(torch.cuda.get_device_capability(0)),
    "memory": properties.total_memory, "cpu": platform.processor() or platform.machine(),
    "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    "nvcc": (output("nvcc", "--version") or "").splitlines()[-1:],
}
json.dump(record, open(sys.argv[1], "w"), indent=1)
print(json.dumps(record))
PYTHON
}

# Test files whose packages are missing here are left out; everything else must pass.
collectable() { mapfile -t ignored < <("$python" benchmarks/importable.py tests 2> >(tee -a "$log" >&2)); }

# Without the caching allocator every tensor is an allocation of its own, and reading past its end is seen. Thousands
# of steps would take hours there.
memcheck() { # runs the GPU tests of what launches kernels
    env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 --target-processes all \
        "$python" -m pytest -q -x -p no:cacheprovider -m "cuda and not slow" -k "not thousands" \
        "${kernel_tests[@]}" "${ignored[@]}"
}

# Of the kernels those of gram, of norms, of steps and of images use shared memory; norms and steps also count blocks.
racecheck() {
    compute-sanitizer --tool racecheck --error-exitcode 9 --target-processes all \
        "$python" -m pytest -q -x -p no:cacheprovider -m "cuda and not slow" \
        -k "gram or clips or how_often or skip or graph or channels_last or test_on_cuda" \
        tests/test_ops_cuda.py tests/test_ops_norm.py tests/test_ops_steps.py tests/data/test_image_ops.py
}

# A record is made in the checkout and moved out of it.
keep() { # NAME COMMAND...
    local name=$1 line status
    shift
    "$@" | tee "$results/.measure"
    status=${PIPESTATUS[0]}
    line=$(sed -n 's/^wrote //p' "$results/.measure")
    rm -f "$results/.measure"
    [ "$status" -eq 0 ] && mv "$line" "$results/$name.json"
}

measure() { # SUITE
    keep "$1" "$python" benchmarks/record.py "benchmarks/test_$1.py" -m cuda -p no:cacheprovider
}

images() {
    keep images env PYTHON="$python" bash benchmarks/images_gpu.sh
}

# The demonstration, with what it trained on and how fast; needs the packages of the extra `demo`.
train() {
    local output status
    output=$(mktemp -d)
    "$python" -c 'from ratfast.cli.main import train; train()' --output "$output" ${TRAIN-}
    status=$?
    [ "$status" -eq 0 ] && "$python" - "$output" "$results/train.json" <<'PYTHON'
import json, pathlib, sys
import torch
from ratfast.data.backend import open_backend

output = pathlib.Path(sys.argv[1])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
runs = [json.loads(path.read_text()) for path in sorted(output.rglob("run.json"))]
record = {
    "recipe": (output / "recipe.toml").read_text(),
    "device": device.type,
    "backend": open_backend("auto", image_size=64, max_batch=1, device=device).name,
    "images_per_second": {run["name"]: run["images_per_second"] for run in runs},
    "summary": json.loads((output / "summary.json").read_text()),
}
json.dump(record, open(sys.argv[2], "w"), indent=1)
PYTHON
    status=$((status + $?))
    rm -rf "$output"
    return $status
}

shopt -s nullglob
kernel_tests=(tests/test_ops*.py tests/optim/test_on_arena.py tests/data/test_image_ops.py)
present=()
for path in "${kernel_tests[@]}"; do [ -e "$path" ] && present+=("$path"); done
kernel_tests=("${present[@]}")
ignored=()
export -f machine memcheck racecheck keep measure images train
export python results

bash_step() { # NAME SECONDS FUNCTION...: a step that is a function of this script
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" bash -c "$(declare -p kernel_tests ignored); $(printf '%q ' "$@")"
}

bash_step machine 120 machine
step build 600 env RATFAST_NATIVE=require RATFAST_CUDA=require "$python" setup.py build_ext --inplace
case " $steps " in *" tests "* | *check*) collectable ;; esac
step tests 600 "$python" -m pytest -q -p no:cacheprovider tests "${ignored[@]}"
bash_step memcheck 600 memcheck
bash_step racecheck 600 racecheck
export RATFAST_BENCH_MODELS=${RATFAST_BENCH_MODELS:-4,20} # of the averaging suite
for suite in optimizers averaging training_step; do
    [ -e "benchmarks/test_$suite.py" ] && bash_step "$suite" 600 measure "$suite"
done
bash_step images 600 images
bash_step train 600 train

write_summary
cat "$results/summary.json"
exit $failed
