#!/usr/bin/env bash
# A session on a machine with a CUDA device but without Rust: what is built here, and in which order it runs there.
#
#   deploy/gpu-session.sh build [FOLDER]            builds the test programs and the bench, and packs them into FOLDER
#   deploy/gpu-session.sh run [FOLDER [STEP...]]    runs them there; the output goes to FOLDER/results
#
# FOLDER is target/gpu by default. In it are folders of less than 64 MB each, which can be carried one by one: programs,
# and the test model in parts. The machine needs a driver, CUDA's headers and libnvrtc (CUDA_PATH, /usr/local/cuda, or the
# Python packages nvidia-*-cu13), python3 and xz; for the step `peers` also torch and transformers.
#
# STEPs, all of them by default, each a few minutes long: kernels, twins, units, model, ceilings, small, large, large-int8,
# peers. What they show stands in docs/gpu-results.md. A step that fails does not stop the others; the last line says which
# ones did.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$(realpath -m "${2:-target/gpu}")"

# Path of the program that cargo built for a target of a kind ("test", "bench", or "lib" for a library's own tests).
program() {
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    target = message.get("target", {})
    if message.get("executable") and target["name"] == sys.argv[1] and sys.argv[2] in target["kind"]:
        print(message["executable"])' "$1" "$2"
}

build() {
    local programs="$folder/programs" stage="$folder/stage" built
    rm -rf "$programs" "$stage"
    mkdir -p "$programs" "$stage" "$folder/model-a" "$folder/model-b"
    # The kernels' checks run the emitted sources with NVRTC and the driver alone.
    built=$(CARGO_TARGET_DIR=target/kernels cargo test --release -p rallrec-kernels --features emit --test without_gpu \
        --example emit --no-run --message-format json)
    cp "$(program without_gpu test <<<"$built")" "$stage/without_gpu"
    "$(program emit example <<<"$built")" "$stage/emitted"
    built=$(cargo test --release --workspace --features rallrec/cuda --test cuda --bench roofline --no-run \
        --message-format json)
    cp "$(program cuda test <<<"$built")" "$stage/cuda"
    cp "$(program roofline bench <<<"$built")" "$stage/roofline"
    built=$(cargo test --release --workspace --features rallrec/cuda --lib --no-run --message-format json)
    cp "$(program rallrec_llm lib <<<"$built")" "$stage/units"
    strip "$stage/without_gpu" "$stage/cuda" "$stage/roofline" "$stage/units"
    cp crates/kernels/tests/without_gpu/device.py crates/llm/benches/random_model.py crates/llm/benches/peer_cuda.py "$stage/"
    # In one archive: the programs have most of their code in common.
    tar --create --directory "$stage" . | xz --threads 1 --lzma2=preset=6,dict=256MiB >"$programs/programs.tar.xz"
    rm -rf "$stage"
    cp deploy/gpu-session.sh "$programs/"
    local model
    model="$(ls .rallrec/sources/smollm2-135m-instruct/*.gguf)"
    head -c 50000000 "$model" >"$folder/model-a/part"
    tail -c +50000001 "$model" >"$folder/model-b/part"
    du -sh "$folder"/*
}

# CUDA's folder on this machine.
cuda_folder() {
    local path
    for path in "${CUDA_PATH:-}" /usr/local/cuda /opt/cuda; do
        [ -n "$path" ] && [ -e "$path/include/cuda_bf16.h" ] && echo "$path" && return
    done
    python3 -c 'import pathlib, nvidia
for root in nvidia.__path__:
    for header in pathlib.Path(root).glob("*/include/cuda_bf16.h"):
        print(header.parent.parent)' | head -1
}

results="$folder/results" failed=""

# Runs a command and keeps what it says; notes when it fails.
note() {
    local name="$1"
    shift
    echo "== $name: $*"
    "$@" 2>&1 | tee -a "$results/$name.txt" || failed="$failed $name"
}

# What each step runs. The first rounds of a program tune the products, which can take minutes.
step() {
    local on="$folder/on"
    case "$1" in
    # Each kernel on the device against its definition in 64 bits.
    kernels) note kernels "$on/without_gpu" --nocapture --skip nvrtc ;;
    # Each kernel on the device against the CPU's loops on the same inputs.
    twins) note twins env RALLREC_KERNELS_EMITTED="$on/emitted" "$on/units" --nocapture twins:: ;;
    # Matrices on the device against those on the CPU.
    units) note units "$on/units" --nocapture --test-threads 1 cuda:: ;;
    # The model on the device against the CPU. One test at a time: each loads two models.
    model) note model "$on/cuda" --nocapture --test-threads 1 ;;
    ceilings) note ceilings python3 "$on/peer_cuda.py" ;;
    small) random smollm2-135m && note small "$on/roofline" --model "$folder/smollm2-135m" ;;
    large) random llama-8b && note large "$on/roofline" --model "$folder/llama-8b" ;;
    large-int8) random llama-8b && note large-int8 "$on/roofline" --precision int8 --model "$folder/llama-8b" ;;
    peers) random smollm2-135m && random llama-8b &&
        note peers python3 "$on/peer_cuda.py" "$folder/smollm2-135m" "$folder/llama-8b" ;;
    *) echo "no step is called $1" && exit 2 ;;
    esac
}

# Weights of a shape, written once.
random() {
    [ -e "$folder/$1/complete" ] || { python3 "$folder/on/random_model.py" "$folder/$1" "$1" && touch "$folder/$1/complete"; }
}

run() {
    local cuda steps=("${@}")
    [ ${#steps[@]} -gt 0 ] || steps=(kernels twins units model ceilings small large large-int8 peers)
    mkdir -p "$results" "$folder/on" "$folder/kernels"
    nvidia-smi | tee "$results/device.txt"
    [ -e "$folder/on/units" ] || xz --decompress --stdout --memlimit=0 "$folder/programs/programs.tar.xz" | tar -x -C "$folder/on"
    export RALLREC_TEST_MODEL="$folder/model.gguf"
    [ -e "$RALLREC_TEST_MODEL" ] || cat "$folder/model-a/part" "$folder/model-b/part" >"$RALLREC_TEST_MODEL"
    cuda="$(cuda_folder)"
    [ -n "$cuda" ] || { echo "CUDA's headers are not found; set CUDA_PATH" && exit 2; }
    export CUDA_PATH="$cuda" LD_LIBRARY_PATH="$cuda/lib64:$cuda/lib:${LD_LIBRARY_PATH:-}"
    export RALLREC_KERNELS_ON=cuda RALLREC_KERNELS_TMP="$folder/kernels" RALLREC_KERNELS_SCRIPT="$folder/on/device.py"
    export RALLREC_NVRTC="${RALLREC_NVRTC:-$(ls "$cuda"/lib64/libnvrtc.so* "$cuda"/lib/libnvrtc.so* 2>/dev/null | head -1)}"
    export RALLREC_CUDA_INCLUDE="$cuda/include:$cuda/include/cccl" RUST_BACKTRACE=1
    local one
    for one in "${steps[@]}"; do
        step "$one"
    done
    echo "failed:${failed:- none}" | tee -a "$results/device.txt"
}

case "${1:-}" in
build) build ;;
run) run "${@:3}" ;;
*) sed -n '2,16p' "$0"; exit 2 ;;
esac
