#!/usr/bin/env bash
# Runs recipes one after another on one thread, and adds their rows to the record: runs/speedrun/run.sh runs/speedrun/recipes/*.yaml
# Stop it at any time; the same command goes on. MINUTES=60 limits each recipe.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=PASSIVE
for recipe in "$@"; do
    folder="out/speedrun/$(basename "$recipe" .yaml)"
    mkdir -p "$folder"
    # rows can be compared if the same networks have measured them
    [ -f "$folder/classifier.safetensors" ] || cp runs/results/fashion_mnist_classifier.safetensors "$folder/classifier.safetensors"
    [ -f "$folder/second_extractor.npz" ] || [ ! -f out/speedrun/second_extractor.npz ] || cp out/speedrun/second_extractor.npz "$folder/"
    .venv/bin/dit-hf study "$folder" --recipe "$recipe" ${MINUTES:+--budget-minutes "$MINUTES"}
    [ ! -f "$folder/second_extractor.npz" ] || cp "$folder/second_extractor.npz" out/speedrun/
    .venv/bin/python runs/speedrun/record.py collect "$folder/results.csv"
done
