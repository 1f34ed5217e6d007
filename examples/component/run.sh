#!/usr/bin/env sh
# The four steps of the Azure ML components from their YAML, on this machine and offline: a text
# encoder learns to tell what a definition is about.
#
#   sh examples/component/run.sh [FOLDER]
#
# A second run does nothing again, and says so; `luthier component run pipeline/job.yaml --set
# num_train_epochs=4` does finetune and evaluate.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:-component-example}"
cd "${1:-component-example}"

python "$here/make_rows.py"
luthier component yaml SingleLabelClassification --output pipeline --overwrite \
  --set huggingface_id=all-minilm-l6-v2 \
  --set train_file_path=../rows.jsonl \
  --set sentence1_key=definition \
  --set label_key=subject \
  --set learning_rate=1e-4 \
  --set num_train_epochs=2 \
  --set per_device_train_batch_size=16 \
  --set metric_for_best_model=accuracy
luthier component run pipeline/job.yaml
