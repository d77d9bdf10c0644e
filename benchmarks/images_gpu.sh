#!/bin/bash
# Images per second into channels-last bfloat16 batches on the GPU, and the host's own rate of decoding beside it:
# benchmarks/images_gpu.sh writes a record to benchmarks/results. PYTHON names the interpreter.
set -eu
cd "$(dirname "$0")/.."
export RATFAST_BENCH_DEVICE=cuda RATFAST_BENCH_THREADS=${RATFAST_BENCH_THREADS:-$(nproc)}
export RATFAST_BENCH_IMAGES=${RATFAST_BENCH_IMAGES:-1200} RATFAST_BENCH_BATCHES=${RATFAST_BENCH_BATCHES:-40}
export RATFAST_BENCH_SIZES=${RATFAST_BENCH_SIZES:-500x375}
exec "${PYTHON:-python}" benchmarks/record.py benchmarks/images.py
