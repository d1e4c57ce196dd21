#!/bin/bash
# The whole demo run on one GPU, in the background, for machines whose commands are short-lived.
#
#   run_gpu.sh start CORPUS [RUN]    tokenise, train PHOTON and the Transformer, evaluate; returns at once
#   run_gpu.sh probe CORPUS [RUN]    one minute each of a few shapes; returns at once
#   run_gpu.sh wait SECONDS [RUN]    follow the log until the run ends or the time is up
#   run_gpu.sh collect OUT [RUN]     the newest weights as shards <= 16 MiB, and results.tar with everything else
#
# RUN defaults to /tmp/photon-run. Times can be set: MINUTES (PHOTON), COMPARE_MINUTES (both models, equal time), PROBE_MINUTES.
# `collect` works at any time after the first save. Weights that it brought back can be trained on:
#   train.py --init OUT --start-minutes M ...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
verb=${1:?start, probe, wait or collect} argument=${2:?} run=${3:-/tmp/photon-run}
minutes=${MINUTES:-14} compare_minutes=${COMPARE_MINUTES:-3} probe_minutes=${PROBE_MINUTES:-1}
weights=${WEIGHTS:-tinystories=4,picture_books=3,fairy_tales=3,books_a=2,books_b=1}
cd "$here"

prepare() {
  [ -f "$run/tokenizer.model" ] || python tokenizer.py --corpus "$1" --out "$run/tokenizer.model"
  [ -f "$run/cache/valid.tokens.npy" ] ||
    python data.py --corpus "$1" --tokenizer "$run/tokenizer.model" --cache "$run/cache" --threads "$(nproc)"
}

train() {  # NAME CONFIG MINUTES [options of train.py]
  local name=$1 config=$2 time=$3
  shift 3
  echo "== $name"
  python train.py --config "$config" --cache "$run/cache" --out "$run/$name" --minutes "$time" --weights "$weights" "$@"
}

run_all() {
  prepare "$1"
  train demo configs/demo.json "$minutes" --save-minutes 1
  python evaluate.py --model "$run/demo/state.pt" --cache "$run/cache" --out "$run/demo.json" --rows 16
  train transformer configs/transformer.json "$compare_minutes"
  python evaluate.py --model "$run/transformer/state.pt" --cache "$run/cache" --out "$run/transformer.json" --rows 16
  train photon_short configs/demo.json "$compare_minutes"
  python evaluate.py --model "$run/photon_short/state.pt" --cache "$run/cache" --out "$run/photon_short.json" --rows 16
  python export.py --state "$run/demo/state.pt" --tokenizer "$run/tokenizer.model" --out "$run/card"
  echo "# PHOTON demo" > "$run/notes.md"
  nvidia-smi --query-gpu=name --format=csv,noheader >> "$run/notes.md"
  python model_card.py --model "$run/card" --notes "$run/notes.md" --results "PHOTON, $minutes min=$run/demo.json" \
    --results "PHOTON, $compare_minutes min=$run/photon_short.json" \
    --results "Transformer, $compare_minutes min=$run/transformer.json"
}

run_probes() {
  prepare "$1"
  probe() {  # NAME "options of shapes.py" [options of train.py]
    local name=$1 shape=$2
    shift 2
    python shapes.py $shape > "$run/$name.config.json"
    train "$name" "$run/$name.config.json" "$probe_minutes" --validate-minutes 99 "$@"
  }
  probe base ""
  probe transformer "--transformer 512x8"
  probe deep_decoder "--decoder 384x6"
  probe wide_decoder "--decoder 512x4"
  probe wide_converter "--converter-width 4"
  probe short_chunks "--chunks 2x4"
  probe no_hiergen "" --hiergen-share 0
  probe faster_rate "" --matrix-lr 0.04
  grep -E "^==|steps," "$run/log"
}

case $verb in
  start | probe)
    mkdir -p "$run"
    setsid "$here/run_gpu.sh" "$verb-here" "$argument" "$run" > "$run/log" 2>&1 < /dev/null &
    ;;
  start-here | probe-here)
    status=0
    task=run_all
    [ "$verb" = probe-here ] && task=run_probes
    (set -e; $task "$argument") & wait $! || status=$?
    echo "finished with status $status"
    ;;
  wait)
    tail -n +1 -f "$run/log" & follower=$!
    for ((i = 0; i < argument; i++)); do
      grep -q "^finished with status" "$run/log" && break
      sleep 1
    done
    kill "$follower"
    ;;
  collect)
    mkdir -p "$argument"
    python export.py --state "$run/demo/state.pt" --tokenizer "$run/tokenizer.model" --out "$argument" --max-shard-mib 15
    cp "$argument"/{config.json,model.safetensors.index.json,tokenizer.model} "$run"
    rm "$argument"/{config.json,model.safetensors.index.json,tokenizer.model}
    [ -f "$run/card/README.md" ] && cp "$run/card/README.md" "$run"
    tar -C "$run" -cf "$argument/results.tar" $(cd "$run" && ls -d log *.json *.md tokenizer.model 2> /dev/null)
    ;;
esac
