#!/usr/bin/env bash
# OpenAI's completions with curl: the model, an answer, a stream, an error.
set -euo pipefail
http=${PHOTON_HTTP:-http://127.0.0.1:8000}

curl -sS --fail "$http/v1/models"
echo
curl -sS --fail "$http/v1/completions" -H 'content-type: application/json' \
  -d '{"model": "demo", "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0.3, "n": 2}'
echo
# As it comes: one "data:" line for each piece, "data: [DONE]" at the end.
curl -sS --fail --no-buffer "$http/v1/completions" -H 'content-type: application/json' \
  -d '{"model": "demo", "prompt": "Once upon a time", "max_tokens": 20, "stream": true}'
# Without --fail an error shows its JSON, which names the field.
curl -sS "$http/v1/completions" -H 'content-type: application/json' \
  -d '{"model": "demo", "prompt": "Once upon a time", "top_p": 2}'
echo
