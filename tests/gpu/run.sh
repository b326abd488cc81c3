#!/bin/bash
# run.sh [BUNDLE]: what only a real GPU can tell, on a machine with a driver and the CUDA libraries. BUNDLE is a folder or tar archive
# that launch/bundle made; without it this script lies in one. In order: conformance of the instructions that tests emulate, every
# op against ref (test_opcheck), a warm start and RL steps on both rows, then times. Ends with a table; status 0 if nothing failed.
set -u
bundle=${1:-$(dirname "$0")/../..}
if [ -f "$bundle" ]; then
    dir=$(mktemp -d)
    tar xf "$bundle" -C "$dir" || exit 2
    bundle=$(dirname "$(find "$dir" -name env.sh | head -n 1)")
fi
cd "$bundle" || exit 2
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || echo "nvidia-smi does not run"
work=$(mktemp -d)
# shellcheck disable=SC1091
. ./env.sh
rows=() failed=0

step() {        # step NAME COMMAND...: its output is shown, its end noted
    local name=$1 start=$SECONDS rc
    shift
    echo "== $name"
    "$@"
    rc=$?
    [ $rc -eq 0 ] || failed=1
    rows+=("$(printf '%-34s %-8s %4d s' "$name" "$([ $rc -eq 0 ] && echo passed || echo "status $rc")" $((SECONDS - start)))")
}
place=(agents.conversation.model="$work/warm" agents.feedback.model="$work/warm" data.0.path="$work/world/prompts-train.jsonl"
    eval.0.path="$work/world/prompts-dev.jsonl" evaluate.eval_limit=8 evaluate.every=0 stages.0.steps=3 stages.1.steps=3
    stages.0.batch=32 stages.1.batch=32 checkpoint.every=100)
warm() { timeout 240 waltz sft recipes/sandbox.yaml sft.model="$work/world/base" sft.data="$work/world/sft.jsonl" sft.out="$work/warm" \
    sft.steps=60 sft.batch=32 backend="$1"; }
train() { timeout 240 waltz train recipes/sandbox.yaml "${place[@]}" out="$work/$1" backend="$2" "${@:3}"; }
same() { train one cuda && train two cuda micro_batch_tokens=64 rollout.max_num_seqs=5 && cmp "$work/one/chain.jsonl" "$work/two/chain.jsonl"; }
decode() {      # one graph a round, and kernel by kernel
    local graphs
    for graphs in 1 0; do
        echo "WZ_CUDA_GRAPHS=$graphs"
        WZ_CUDA_GRAPHS=$graphs timeout 200 generate --backend cuda --shape 1b --type bf16 --batch 64 --prompt 128 --new 256 --runs 3 || return 1
    done
}
# Eight layers of 32: with all of them the weights, masters, gradient and moments of 18 bytes a parameter are more than a GPU has.
learn() {
    local fast
    for fast in "" --fast; do
        echo "products: ${fast:-exact}"
        timeout 120 step $fast --backend cuda --shape 8b --layers 8 --type bf16 --batch 4 --seq 4096 --micro 4096 --recompute &&
            timeout 120 cycle $fast --backend cuda --shape 8b --layers 8 --type bf16 --batch 64 --prompt 256 --new 512 --micro 6144 || return 1
    done
}
busy() { timeout 240 test_opcheck --bench 0 cuda "$1"; }

step "layout conformance" timeout 60 gpu_layout
step "opcheck on cuda" timeout 300 test_opcheck --row cuda
step "opcheck on cuda, fast" timeout 300 test_opcheck --row cuda-fast
waltz sandbox "$work/world" >/dev/null
step "warm start on cuda" warm cuda
step "RL on cuda, twice the same bits" same
step "RL on cpu, for its time" train cpu cpu
large() { WALTZ_COPY=$(gpu_layout copy) && echo "copy $WALTZ_COPY GB/s" && WALTZ_COPY=$WALTZ_COPY timeout 300 test_opcheck --bench-large cuda; }
step "decode at 1B, with graphs and without" decode
step "updates and whole steps at 8B" learn
step "times at 8B, beside ceilings" large
for math in exact fast; do step "times, numerics.cuda=$math" busy $math; done
echo
printf '%s\n' "${rows[@]}"
rm -rf "$work"
exit $failed
