#!/bin/bash
# The whole demo run on the GPUs of one machine, in the background, for machines whose commands are short-lived.
#
#   run_gpu.sh start CORPUS [RUN]    train PHOTON and, for as long, the Transformer; evaluate both; returns at once
#   run_gpu.sh probe CORPUS [RUN]    compare shapes and settings by short runs; returns at once
#   run_gpu.sh wait SECONDS [RUN]    follow the log until the run ends or the time is up
#   run_gpu.sh collect OUT [RUN]     the newest weights as shards <= 16 MiB, and results.tar with everything else
#
# RUN defaults to /tmp/photon-run; a RUN/tokenizer.model that is there already is used. With two GPUs the Transformer
# trains beside PHOTON, with one after it. Set by environment: GPUS (indices, default all), MINUTES (of each), OPTIONS and
# COMPARE_OPTIONS (of train.py, for PHOTON and the Transformer), CONFIG and COMPARE_CONFIG (COMPARE_CONFIG=none: no
# Transformer), SAMPLE_AT (the minute at which PHOTON writes text that the parallel modes are trained on from there) and
# SAMPLE_MINUTES, and for probes PROBE_MINUTES, PROBE_OPTIONS, PROBES (names).
# `collect` works at any time after the first save. Weights that it brought back can be trained on:
#   train.py --init OUT --start-minutes M ...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
verb=${1:?start, probe, wait or collect} argument=${2:?} run=${3:-/tmp/photon-run}
minutes=${MINUTES:-13} probe_minutes=${PROBE_MINUTES:-0.7}
gpus=(${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null || echo 0)})
cd "$here"

prepare() {
  [ -f "$run/tokenizer.model" ] || python tokenizer.py --corpus "$1" --out "$run/tokenizer.model"
  [ -f "$run/cache/bytes_per_token.npy" ] ||
    python data.py --corpus "$1" --tokenizer "$run/tokenizer.model" --cache "$run/cache" --threads "$(nproc)"
}

train() {  # NAME CONFIG MINUTES [options of train.py]
  local name=$1 config=$2 time=$3
  shift 3
  echo "== $name $*"
  python train.py --config "$config" --cache "$run/cache" --out "$run/$name" --minutes "$time" "$@"
}

train_and_evaluate() {  # GPU NAME CONFIG [options of train.py]
  export CUDA_VISIBLE_DEVICES=$1
  local options=(--save-minutes 1 --validate-minutes 1 "${@:4}")
  if [ "$2" = demo ] && [ -n "${SAMPLE_AT-}" ]; then
    train "$2" "$3" "$minutes" "${options[@]}" --max-seconds "$((SAMPLE_AT * 60))"
    options+=(--resume)
    # Training goes on without the text if there is none.
    if python sample.py --model "$run/$2/state.pt" --cache "$run/cache" --minutes "${SAMPLE_MINUTES:-1}"; then
      options+=(--hiergen-text sampled)
    fi
  fi
  train "$2" "$3" "$minutes" "${options[@]}"
  python evaluate.py --model "$run/$2/state.pt" --cache "$run/cache" --out "$run/$2.json" --rows 16
}

run_all() {
  prepare "$1"
  train_and_evaluate "${gpus[0]}" demo "${CONFIG:-configs/demo.json}" ${OPTIONS-} & demo=$!
  ((${#gpus[@]} > 1)) || wait $demo
  [ "${COMPARE_CONFIG-}" != none ] || { wait $demo; return; }
  train_and_evaluate "${gpus[-1]}" transformer "${COMPARE_CONFIG:-configs/transformer.json}" ${COMPARE_OPTIONS-} &
  wait $!
  wait $demo
}

# NAME | options of shapes.py | options of train.py
probes=(
  "base"
  "transformer  | --transformer 512x8"
  "wide         | --decoder 512x4 --top 384x4"
  "deep         | --decoder 384x6 --top 448x4"
  "converter_4  | --converter-width 4"
  "wide_deep    | --decoder 512x5 --mid 320x2 --encoder 320x2 --top 384x4"
  "decoder_most | --decoder 512x6 --mid 256x2 --encoder 256x2 --top 384x3"
  "mid_4        | --mid 384x4 --top 448x4"
  "batch_64     | | --batch 64"
  "long         | | --batch 64 --length 2048"
  "rate_0.04    | | --matrix-lr 0.04"
  "recgen       | | --recgen-share 0.125"
  "no_hiergen   | | --hiergen-share 0"
  "chunks_2x4   | --decoder 512x4 --top 384x4 --chunks 2x4"
  "chunks_4x2   | --decoder 512x4 --top 384x4 --chunks 4x2"
  "chunks_8x2   | --decoder 512x4 --top 384x4 --chunks 8x2"
  "chunks_8x4   | --decoder 512x4 --top 384x4 --chunks 8x4"
  "chunks_16x2  | --decoder 512x4 --top 384x4 --chunks 16x2"
  "chunks_16x4  | --decoder 512x4 --top 384x4 --chunks 16x4"
  "hiergen_half | | --hiergen-share 0.5"
)
workers_per_gpu=3  # one trains while the others compile

run_probes() {
  prepare "$1"
  probe() {  # GPU LINE
    local name shape options
    IFS='|' read -r name shape options <<< "$2"
    name=${name// /}
    [[ " ${PROBES:-$name} " == *" $name "* ]] || return 0
    python shapes.py $shape > "$run/$name.config.json"
    CUDA_VISIBLE_DEVICES=$1 train "$name" "$run/$name.config.json" "$probe_minutes" --turn "$run/gpu$1.lock" \
      --report-seconds 99 --validate-minutes 99 $options ${PROBE_OPTIONS-}
  }
  workers=$((${#gpus[@]} * workers_per_gpu))
  for ((w = 0; w < workers; w++)); do
    for ((i = w; i < ${#probes[@]}; i += workers)); do
      probe "${gpus[w % ${#gpus[@]}]}" "${probes[i]}" || echo "${probes[i]}: failed"
    done &
  done
  wait
  # Those that change how the parallel modes read: their seams lie between level-1 units.
  modes_of=(base wide recgen no_hiergen hiergen_half chunks_{2x4,4x2,8x2,8x4,16x2,16x4})
  for name in "${modes_of[@]}"; do
    [ ! -f "$run/$name/state.pt" ] ||
      CUDA_VISIBLE_DEVICES=${gpus[0]} python evaluate.py --model "$run/$name/state.pt" --cache "$run/cache" --out "$run/$name.json" --rows 16 --windows 64 \
        > /dev/null &
  done
  wait
  sort "$run/log" | grep -E "ready|steps,|failed" > "$run/summary"
  for name in "${modes_of[@]}"; do
    grep -HE "bits|perplexity|kl_nats" "$run/$name.json" >> "$run/summary" || true
  done
  cat "$run/summary"
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
    cp "$argument"/{config.json,tokenizer.model} "$run"
    rm "$argument"/{config.json,tokenizer.model}
    [ ! -f "$argument/model.safetensors.index.json" ] || mv "$argument/model.safetensors.index.json" "$run"
    tar -C "$run" -cf "$argument/results.tar" $(cd "$run" && ls -d log *.json tokenizer.model 2> /dev/null)
    ;;
esac
