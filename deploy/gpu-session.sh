#!/usr/bin/env bash
# A session on a machine with a CUDA device but without Rust: what is built here, and in which order it runs there.
#
#   deploy/gpu-session.sh build [FOLDER]   builds, strips and compresses the test programs and the bench into FOLDER
#   deploy/gpu-session.sh run [FOLDER]     runs them there; the output goes to FOLDER/results
#
# FOLDER is target/gpu by default. In it are folders of less than 64 MB each, which can be carried one by one: programs,
# and the test model in parts. The machine needs a driver, libnvrtc, CUDA's headers (CUDA_PATH or /usr/local/cuda),
# python3 and xz.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$(realpath -m "${2:-target/gpu}")"

# Path of the program that cargo built for a target.
program() {
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == sys.argv[1]:
        print(message["executable"])' "$1"
}

build() {
    local programs="$folder/programs" built
    mkdir -p "$programs" "$folder/model-a" "$folder/model-b"
    built=$(cargo build --release --workspace --features rallrec/cuda --test cuda --bench roofline --message-format json)
    cp "$(program cuda <<<"$built")" "$programs/cuda"
    cp "$(program roofline <<<"$built")" "$programs/roofline"
    # The kernels' checks run the emitted sources with NVRTC and the driver alone.
    built=$(CARGO_TARGET_DIR=target/kernels cargo test --release -p rallrec-kernels --features emit --test without_gpu \
        --no-run --message-format json)
    cp "$(program without_gpu <<<"$built")" "$programs/without_gpu"
    strip "$programs/cuda" "$programs/roofline" "$programs/without_gpu"
    xz --force -T0 "$programs/cuda" "$programs/roofline" "$programs/without_gpu"
    cp crates/kernels/tests/without_gpu/device.py crates/llm/benches/random_model.py "$programs/"
    local model
    model="$(ls .rallrec/sources/smollm2-135m-instruct/*.gguf)"
    head -c 50000000 "$model" >"$folder/model-a/part"
    tail -c +50000001 "$model" >"$folder/model-b/part"
    du -sh "$folder"/*
}

run() {
    local results="$folder/results" programs="$folder/programs" cuda="${CUDA_PATH:-/usr/local/cuda}"
    mkdir -p "$results"
    nvidia-smi | tee "$results/device.txt"
    for packed in "$programs"/*.xz; do
        xz --decompress --keep --force "$packed"
    done
    export RALLREC_TEST_MODEL="$folder/model.gguf"
    cat "$folder/model-a/part" "$folder/model-b/part" >"$RALLREC_TEST_MODEL"

    # 1. Each kernel against plain loops, launched through the driver.
    export RALLREC_KERNELS_ON=cuda RALLREC_KERNELS_TMP="$folder/kernels" RALLREC_KERNELS_SCRIPT="$programs/device.py"
    export RALLREC_NVRTC="${RALLREC_NVRTC:-$(ls "$cuda"/lib64/libnvrtc.so* | head -1)}"
    export RALLREC_CUDA_INCLUDE="$cuda/include"
    mkdir -p "$RALLREC_KERNELS_TMP"
    "$programs/without_gpu" --nocapture --skip nvrtc 2>&1 | tee "$results/kernels.txt" || true

    # 2. The model against the CPU. One test at a time: each loads two models.
    "$programs/cuda" --nocapture --test-threads 1 2>&1 | tee "$results/model.txt" || true

    # 3. Speed. The first rounds tune the products, which can take minutes.
    "$programs/roofline" 2>&1 | tee "$results/roofline-smollm2.txt" || true
    python3 "$programs/random_model.py" "$folder/random-8b"
    "$programs/roofline" --model "$folder/random-8b" 2>&1 | tee "$results/roofline-8b.txt" || true
}

case "${1:-}" in
build) build ;;
run) run ;;
*) sed -n '2,8p' "$0"; exit 2 ;;
esac
