#!/bin/bash
# Distillation on Flickr8k, from the teacher's answers to the report of docs/distillation.md.
#
#   VISTILL_DATA=FOLDER scripts/distil_flickr8k.sh [OUT]
#
# FOLDER holds flickr8k/ and imagenet_sample1000/; OUT (built and runs, by default the current folder) holds the
# three checkpoints of the teacher under runs/. Every step is skipped or continued when the script is run again.
# On one core without AVX-512: half an hour for the teacher, then about four minutes for each of 15 students.
set -euo pipefail
data=${VISTILL_DATA:?set it to the folder of the data sets}
scripts=$(cd "$(dirname "$0")" && pwd)
cd "${1:-.}"
teacher=runs/flickr8k-captioner/best+runs/flickr8k-captioner-restart/best+runs/flickr8k-captioner-scst/best

python "$scripts/unlabelled_pictures.py" "$data/flickr8k" "$data/imagenet_sample1000" built/pictures
vistill data build folder built/pictures --out built/flickr8k-extra --allow-uncaptioned
vistill teach run "$teacher" built/flickr8k-extra --out built/teacher --splits train,extra \
  --captions 3 --top-k 16 --hidden all --hidden-dtype int8

declare -A arms=(
  [none]=""
  [sequence]="objective.cross_entropy=0.5 objective.teacher_cross_entropy=0.5"
  [top-k]="objective.cross_entropy=0.5 objective.top_k_kl=1.0"
  [hidden]="objective.hidden_cosine=1.0"
  [all]="objective.cross_entropy=0.3 objective.teacher_cross_entropy=0.3 objective.top_k_kl=0.7 objective.hidden_cosine=0.5"
)
order=(none sequence all top-k hidden)

for seed in 0 1 2; do
  for arm in "${order[@]}"; do
    run=runs/distilled-$arm-$seed
    if [[ ! -d $run/best ]]; then
      resume=$([[ -f $run/last.ckpt ]] && echo --resume || true)
      # shellcheck disable=SC2086
      vistill train experiment=flickr8k-distilled name="distilled-$arm-$seed" trainer.seed=$seed \
        datamodule.teacher=built/teacher datamodule.augment.flip=0 datamodule.cache=built/views-$seed ${arms[$arm]} $resume
    fi
    if [[ ! -f runs/evaluate/$arm-$seed/metrics.json ]]; then
      vistill evaluate "$run/best" --data built/flickr8k-extra --num-beams 3 --pictures 4 --out runs/evaluate/$arm-$seed
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
vistill report distill --teacher "ensemble of three=runs/evaluate/teacher" \
  --row "no teacher=runs/evaluate/none-0,runs/evaluate/none-1,runs/evaluate/none-2" "${rows[@]}" --out runs/report-distill
