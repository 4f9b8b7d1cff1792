#!/usr/bin/env bash
# The study in miniature and its figures; run it again and it goes on. $1: minutes that it may take (no limit if left out).
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=PASSIVE
mkdir -p out/study-tuned  # a new folder begins with the rows and the feature extractor that there are
[ -f out/study-tuned/results.csv ] || cp runs/results/fashion_mnist_tuned.csv out/study-tuned/results.csv
[ -f out/study-tuned/classifier.safetensors ] || cp runs/results/fashion_mnist_classifier.safetensors out/study-tuned/classifier.safetensors
.venv/bin/dit-hf study out/study-tuned --recipe runs/fashion_mnist_tuned.yaml ${1:+--budget-minutes "$1"}
cp out/study-tuned/results.csv runs/results/fashion_mnist_tuned.csv
.venv/bin/dit-hf plot runs/results/fashion_mnist_tuned.csv --output-dir docs/images/study --samples out/study-tuned/samples
