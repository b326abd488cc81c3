#!/bin/bash
# run.sh [BUNDLE [RESULTS]]: what only a real GPU can tell, in one call of ten minutes, on a machine with a driver and the CUDA
# libraries. BUNDLE is a folder or archive that launch/bundle made; without it this script lies in one.
#
#   first     conformance of the instructions that tests emulate, and every op against ref: where one of these fails, or skips
#             something, nothing that follows would count, and the script ends
#   then      the figures of bench/results/h200.md, those that matter most first
#
# Every row of that table is appended to RESULTS/rows.md (default: the folder gpu-results) when it is known, and all output to
# RESULTS/log.txt, so that a call that is cut off leaves what was measured. Status 0: nothing failed, nothing was left out. `run.sh --list` prints the
# table without figures.
set -u
list=
if [ "${1:-}" = --list ]; then
    list=1 results=/dev/null
else
    bundle=${1:-$(dirname "$0")/../..} results=${2:-gpu-results}
    mkdir -p "$results" || exit 2
    results=$(cd "$results" && pwd)
    if [ -f "$bundle" ]; then
        unpacked=$(mktemp -d)
        readonly unpacked       # whatever env.sh calls its variables: this is what is removed in the end
        trap 'rm -rf "$unpacked"' EXIT
        tar xf "$bundle" -C "$unpacked" || exit 2
        bundle=$(dirname "$(find "$unpacked" -name env.sh | head -n 1)")
    fi
    cd "$bundle" || exit 2
    # shellcheck disable=SC1091
    . ./env.sh
fi
seconds=${WZ_GPU_SECONDS:-585}      # of the whole call
log=$results/log.txt rows=$results/rows.md failed=0 out=$(mktemp)
declare -A status outputs

say() { if [ -n "$list" ]; then echo "$*"; else echo "$*" | tee -a "$rows" "$log"; fi; }

# figure SECONDS NAME WANTED PICK COMMAND...: a row of the table. PICK reads what COMMAND printed, and prints the figure. Rows with
# the same command run it once.
figure() {
    local limit=$1 name=$2 wanted=$3 pick=$4 key=${*:5} got left=$((seconds - SECONDS))
    shift 4
    if [ -z "$list" ] && [ -z "${status[$key]:-}" ] && [ $left -ge 5 ]; then
        echo "== $key" >>"$log"
        timeout -k 5 $((left < limit ? left : limit)) "$@" >"$out" 2>&1
        status[$key]=$?
        cat "$out" >>"$log"
        outputs[$key]=$(<"$out")
    fi
    if [ -n "$list" ]; then got="not measured"
    elif [ -z "${status[$key]:-}" ]; then got="no time was left"
    elif [ "${status[$key]}" -ne 0 ]; then got="FAILED: status ${status[$key]}: $(tail -n 1 <<<"${outputs[$key]}" | tr '|' ' ')"
    elif grep -qi skip <<<"${outputs[$key]}"; then got="FAILED: skipped: $(grep -i -m 1 skip <<<"${outputs[$key]}" | tr '|' ' ')"
    else
        got=$(eval "$pick" <<<"${outputs[$key]}")
        [ -n "$got" ] || got="FAILED: it printed no such figure"
    fi
    case $got in FAILED* | "no time"*) failed=1 ;; esac
    say "| $name | $wanted | $got | \`$key\` |"
}
# What the group of a pattern matches, of every line that has it: all of them, the last, the least and the most.
all() { grep -oE "$1" | sed -E "s#^$1\$#\\1#"; }
text() { all "$1" | tail -n 1; }
range() { all "$1" | sort -n | sed -n '1p;$p' | paste -sd' ' | sed -E "s/^(.*) (.*)\$/\\1 to \\2${2:-}/"; }
passed() { echo passed; }
finish() {
    rm -f "$out"
    exit $failed
}

if [ -z "$list" ]; then
    {
        date -u
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader || echo "nvidia-smi does not run"
    } 2>&1 | tee -a "$log" | sed 's/^/<!-- /; s/$/ -->/' | tee -a "$rows"
fi
say "| figure | wanted | measured | command |"
say "|---|---|---|---|"
figure 60 "instructions do what the tests' stand-ins do" passed passed gpu_layout
figure 150 "every op against \`ref\`, exact" passed passed test_opcheck --row cuda
[ $failed -eq 0 ] || finish

decode="generate --backend cuda --shape 8b --type bf16 --prompt 1024 --new 256"
update="step --backend cuda --shape 8b --layers 8 --type bf16 --batch 4 --seq 4096 --micro 4096 --recompute"
cycle="cycle --backend cuda --shape 8b --layers 8 --type bf16 --batch 64 --prompt 256 --new 512 --micro 6144"
figure 30 "copy of device memory, read and written" "the ceiling of what follows" "text '([0-9.]+)' | sed 's#\$# GB/s#'" gpu_layout copy
WALTZ_COPY=$(text '([0-9.]+)' <<<"${outputs[gpu_layout copy]:-}")
export WALTZ_COPY
for fast in "" " --fast"; do
    products=${fast:+fast}
    products=${products:-exact}
    figure 75 "decode at 8B, 64 sequences, $products products" ">= 7,500 tokens/s" "text 'decode ([0-9.]+ tokens/s)'" $decode --batch 64$fast
    figure 75 "prefill of the same" "" "text 'prefill ([0-9.]+ tokens/s)'" $decode --batch 64$fast
    figure 60 "an update at 8B shape, 8 layers, $products products" ">= 495,000 GFLOP/s, half of the peak" \
        "text ': ([0-9.]+ tokens/s [(].* GFLOP/s[)])' | tr '(' ',' | tr -d ')' | sed 's/ ,/, /'" $update$fast
    figure 75 "a whole step of one agent, the same shape" ">= 0.7 of its parts" \
        "grep -E '^rollout|threads: ' | sed -E 's/.*: ([0-9.]+ tokens.s).*/\\1/' | paste -sd' '" $cycle$fast
done
figure 75 "rollout against update, fast products" "how many differ" "text '([0-9]+ of [0-9]+ log-probabilities differ, by up to [^ ]+)'" \
    $cycle --fast
figure 60 "decode at 8B, one sequence" ">= 180 tokens/s" "text 'decode ([0-9.]+ tokens/s)'" $decode --batch 1
figure 75 "decode at 8B, 64 sequences, kernel by kernel" "less than with graphs" "text 'decode ([0-9.]+ tokens/s)'" \
    env WZ_CUDA_GRAPHS=0 $decode --batch 64
for type in f32 bf16; do
    figure 60 "RL in $type, twice, cut differently: the same \`chain.jsonl\`" passed "text '(same bits, .*)'" tests/gpu/rl cuda $type
done
figure 30 "an NCCL communicator of one" passed passed mpirun -n 1 test_communicator

large="test_opcheck --bench-large cuda"
ratio='([0-9.]+) x fast'
figure 150 "exact products of 8192 rows, over cuBLASLt's time" "<= 1.3" "range '^matmul +n 8192 .* $ratio\$'" $large
figure 150 "the same for a weight's gradient" "<= 1.3" "range '^matmul_back_w .* $ratio\$'" $large
figure 150 "exact products of 1 to 64 rows, share of copy" ">= 85 %" "range '^matmul +n +[0-9]{1,2} .* ([0-9]+) % of copy' ' %'" $large
figure 150 "head_logprob over its product" "<= 1.1" "text '^head_logprob .* $ratio'" $large
figure 150 "head_logprob's memory, of the logits' bytes" "< 10 %" "text '^head_logprob .*, (-?[0-9.]+ %) of the logits'" $large
figure 150 "head_back over its three products" "" "text '^head_back .* $ratio'" $large
figure 150 "sampling from [256, 128256] beyond its product, share of copy" ">= 80 %" \
    "text '^head_sample +n +256 .* ([0-9]+ %) of copy'" $large
figure 150 "rmsnorm, swiglu, add, cast, adamw: share of copy" ">= 85 %" \
    "grep -E '^(rmsnorm |swiglu|add|cast|adamw)' | range ' ([0-9]+) % of copy' ' %'" $large
figure 150 "hash of published weights" "as a read" "text '^hash .* ([0-9.]+ GB/s)'" $large

ops="test_opcheck --bench 0 cuda"
for shape in "64 1024 >= 70 %" "64 4096 >= 85 %" "1 4096 "; do
    read -r seqs length share <<<"$shape"
    figure 60 "paged decode, 8B heads, $seqs of $length, share of copy" "$share" \
        "grep -A 1 -E '^att. decode half +n +$seqs +in +$length ' | text '([0-9.]+ %) of a copy'" $ops
done
for length in 4096 512; do
    figure 60 "causal attention, 8B heads, 4096 tokens in documents of $length" ">= 1.0 and 0.9 of PyTorch's" \
        "grep -A 1 -E '^attention half +n +4096 +in +$length ' | sed -E 's#.* us +##' | paste -sd' ' | sed 's#GFLOP/s #and #'" $ops
done
figure 60 "all ops at 135M shapes, exact" "in the log" "wc -l | sed 's/\$/ lines/'" $ops
figure 60 "all ops at 135M shapes, fast" "in the log" "wc -l | sed 's/\$/ lines/'" $ops fast

if [ -n "$list" ] || python3 -c 'import torch' 2>/dev/null; then
    figure 60 "PyTorch: causal attention, forward and backward" "" "paste -sd';'" python3 bench/peers/sdpa.py
    figure 75 "PyTorch: an update at 8B shape, 8 layers" "" "tail -n 1" python3 bench/peers/torch_step.py --device cuda --shape 8b \
        --layers 8 --type bf16 --batch 4 --seq 4096 --recompute
    figure 60 "PyTorch: softmax and multinomial of [256, 128256]" "3 times ours" "tail -n 1" python3 bench/peers/multinomial.py
else say "<!-- python3 has no PyTorch: its three rows are left out -->"; fi
figure 100 "every op against \`ref\`, fast" passed passed test_opcheck --row cuda-fast
PATH=$PATH:/usr/local/cuda/bin
for tool in racecheck memcheck; do
    figure 120 "$tool of every op, small sizes" passed passed compute-sanitizer --tool $tool --error-exitcode 3 test_opcheck --row cuda --every 19
done
figure 60 "RL in f32 on the CPU, for its time" "" "text '(same bits, .*)'" tests/gpu/rl cpu f32
finish
