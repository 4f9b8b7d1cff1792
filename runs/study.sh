#!/usr/bin/env bash
# The study in miniature and its figures; run it again and it goes on. $1: minutes that it may take (no limit if left out).
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=PASSIVE
mkdir -p out/study  # a new folder begins with the rows and the feature extractor that there are
[ -f out/study/results.csv ] || cp runs/results/fashion_mnist.csv out/study/results.csv
[ -f out/study/classifier.safetensors ] || cp runs/results/fashion_mnist_classifier.safetensors out/study/classifier.safetensors
.venv/bin/dit-hf study out/study --recipe runs/fashion_mnist.yaml ${1:+--budget-minutes "$1"}
cp out/study/results.csv runs/results/fashion_mnist.csv
.venv/bin/dit-hf plot runs/results/fashion_mnist.csv --output-dir docs/images/study --samples out/study/samples
