#!/bin/bash
# Distillation on Flickr8k, from the teacher's answers to the report of docs/distillation.md.
#
#   VISTILL_DATA=FOLDER scripts/distil_flickr8k.sh [OUT]
#
# FOLDER holds flickr8k/ and imagenet_sample1000/; OUT (built and runs, by default the current folder) holds
# runs/flickr8k-captioner, -restart and -scst (docs/training.md) and runs/retriever (docs/retrieval.md). The teacher
# has five members, all trained self-critically at the end: the third stage, three from a new decoder on the tower of
# the second (which differ in their rate), and one on the retriever's EfficientNet-Lite0. Every step is skipped or
# continued when the script is run again. On one core without AVX-512: 120 minutes for the members, 35 for the
# teacher's answers, 3 hours for the fifteen students.
set -euo pipefail
data=${VISTILL_DATA:?set it to the folder of the data sets}
scripts=$(cd "$(dirname "$0")" && pwd)
cd "${1:-.}"
teacher=runs/flickr8k-captioner-scst/best
for rate in 2.5 5 3; do teacher+=+runs/flickr8k-captioner-again-scst-$rate/best; done
teacher+=+runs/flickr8k-captioner-lite0-scst/best

# run NAME WORDS: train it, or go on with it, unless it is done
run() {
  local name=$1
  shift
  [[ -f runs/$name/done ]] && return
  vistill train name="$name" "$@" $([[ -f runs/$name/last.ckpt ]] && echo --resume || true)
  touch "runs/$name/done"
}

lite0="datamodule.cache=built/views-lite0 datamodule.views=3 trainer.encoder=frozen trainer.seed=2"
run flickr8k-captioner-again experiment=flickr8k-captioner-again
for plan in 2.5:3 5:2 3:1; do # rate : epochs that it falls over; the first is the best of each
  run flickr8k-captioner-again-scst-${plan%:*} experiment=flickr8k-captioner-scst optim.lr=${plan%:*}e-4 \
    init_from=runs/flickr8k-captioner-again/best datamodule.cache=built/flickr8k-views-again datamodule.views=3 \
    objective.samples=5 trainer.encoder=frozen trainer.seed=1 trainer.max_epochs=${plan#*:} trainer.validate_every=1
done
# shellcheck disable=SC2086
run flickr8k-captioner-lite0 experiment=flickr8k-captioner-again $lite0 optim.lr=6e-4 trainer.max_epochs=6 \
  init_from=runs/flickr8k-captioner/best tower_from=runs/retriever/best
# shellcheck disable=SC2086
run flickr8k-captioner-lite0-scst experiment=flickr8k-captioner-scst $lite0 trainer.max_epochs=2 \
  trainer.validate_every=2 init_from=runs/flickr8k-captioner-lite0/best

python "$scripts/unlabelled_pictures.py" "$data/flickr8k" "$data/imagenet_sample1000" built/pictures
vistill data build folder built/pictures --out built/flickr8k-extra --allow-uncaptioned
vistill teach run "$teacher" built/flickr8k-extra --out built/teacher --splits train,extra \
  --captions 2 --top-k 16 --hidden all --hidden-dtype int8

declare -A arms=(
  [none]=""
  [sequence]="objective.cross_entropy=0.3 objective.teacher_cross_entropy=0.7"
  [top-k]="objective.cross_entropy=0.3 objective.top_k_kl=1.0"
  [hidden]="objective.hidden_cosine=1.0"
  [all]="objective.cross_entropy=0.2 objective.teacher_cross_entropy=0.3 objective.top_k_kl=1.0 objective.hidden_cosine=0.5"
)
order=(none sequence all top-k hidden)

for seed in 0 1 2; do
  for arm in "${order[@]}"; do
    # shellcheck disable=SC2086
    run distilled-$arm-$seed experiment=flickr8k-distilled trainer.seed=$seed datamodule.teacher=built/teacher \
      ${arms[$arm]}
    if [[ ! -f runs/evaluate/$arm-$seed/metrics.json ]]; then
      vistill evaluate runs/distilled-$arm-$seed/best --data built/flickr8k-extra --num-beams 3 --pictures 4 --out runs/evaluate/$arm-$seed
    fi
  done
done
if [[ ! -f runs/evaluate/teacher/metrics.json ]]; then
  vistill evaluate "$teacher" --data built/flickr8k-extra --num-beams 3 --pictures 4 --out runs/evaluate/teacher
fi

rows=()
for arm in "${order[@]:1}"; do
  rows+=(--row "$arm=$(printf "runs/evaluate/$arm-%s," 0 1 2 | sed 's/,$//')")
done
vistill report distill --teacher "ensemble of five=runs/evaluate/teacher" --data built/flickr8k-extra \
  --row "no teacher=runs/evaluate/none-0,runs/evaluate/none-1,runs/evaluate/none-2" "${rows[@]}" --out runs/report-distill
