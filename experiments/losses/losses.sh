#!/bin/sh
# One draw: its corpus, its teacher (the prompter with the seed of the draw), its start (a prompter that differs in the
# seed of its training alone), and the four rows of Table 1. Prints the scores as JSON.
#   sh experiments/losses/losses.sh DRAW WORKSPACE
set -eu
draw=$1 workspace=$2 here=$(dirname "$0")
start=$(alpro run train_prompter --config sample --workspace "$workspace" --json \
  --set render_sample.seed="$draw" --set train_prompter.seed=$((draw + 100)) |
  python -c 'import json, sys; print(json.load(sys.stdin)["artifacts"]["train_prompter"]["folder"])')
study=$(mktemp -d)
trap 'rm -r "$study"' EXIT
sed "s/^config/seeds = [$draw]\nconfig/" "$here/losses.toml" > "$study/losses.toml"
alpro study "$study/losses.toml" --workspace "$workspace" --set pretrain.start="$start/model" --json
