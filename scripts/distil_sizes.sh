#!/bin/bash
# Students of the captioner in the package, with and without a teacher: docs/distillation.md.
#
#   VISTILL_DATA=FOLDER scripts/distil_sizes.sh [OUT]
#
# FOLDER holds flickr8k/ and imagenet_sample1000/; OUT (built and runs) is by default the current folder. The teacher
# is checkpoints/flickr8k-captioner, shown each picture at four sizes. `anew` learns from random weights, and then
# self-critically as `scst`; `small` goes on from two of its three decoder layers. Every step is skipped or continued
# when the script is run again. Without AVX-512: 25 minutes of two cores for the teacher's answers, five and a half
# hours of one core for the students.
set -euo pipefail
data=${VISTILL_DATA:?set it to the folder of the data sets}
scripts=$(cd "$(dirname "$0")" && pwd)
parent=$scripts/../checkpoints/flickr8k-captioner
cd "${1:-.}"

teacher=$parent
for size in 256 288 320; do
  [[ -d built/size-$size ]] || python "$scripts/resized_checkpoint.py" "$parent" "$size" "built/size-$size"
  teacher+=+built/size-$size
done
if [[ ! -d built/flickr8k-extra ]]; then
  python "$scripts/unlabelled_pictures.py" "$data/flickr8k" "$data/imagenet_sample1000" built/pictures
  vistill data build folder built/pictures --out built/flickr8k-extra --allow-uncaptioned
fi
vistill teach run "$teacher" built/flickr8k-extra --out built/teacher-sizes --splits train,extra --captions 2 --top-k 16

# score NAME MODEL: evaluate it, unless that is done
score() {
  [[ -f runs/evaluate/$1/metrics.json ]] ||
    vistill evaluate "$2" --data built/flickr8k-extra --num-beams 3 --pictures 4 --threads 1 --out "runs/evaluate/$1"
}
score teacher-sizes "$teacher"

# run NAME WORDS: train it, or go on with it, unless it is done; then score it
run() {
  local name=$1
  shift
  if [[ ! -f runs/$name/done ]]; then
    vistill train name="$name" "$@" $([[ -f runs/$name/last.ckpt ]] && echo --resume || true)
    touch "runs/$name/done"
  fi
  score "$name" "runs/$name/best"
}

declare -A starts=([anew]="tower_from=$parent" [small]="init_from=$parent")
declare -A seeds=([anew]="0 1 2 3" [scst]="0 1 2" [small]="0 1 2")
declare -A arms=(
  [none]=""
  [teacher]="objective.cross_entropy=0.2 objective.teacher_cross_entropy=0.3 objective.top_k_kl=1.0"
)
# row ARM: the evaluations of this student
# shellcheck disable=SC2086
row() { printf "runs/evaluate/$student-$1-%s," ${seeds[$student]} | sed 's/,$//'; }

for student in anew scst small; do
  for seed in ${seeds[$student]}; do
    for arm in none teacher; do
      if [[ $student == scst ]]; then
        run "scst-$arm-$seed" experiment=flickr8k-captioner-anew-scst "init_from=runs/anew-$arm-$seed/best" \
          trainer.seed="$seed"
      else
        # shellcheck disable=SC2086
        run "$student-$arm-$seed" experiment=flickr8k-captioner-$student "${starts[$student]}" trainer.seed="$seed" \
          datamodule.teacher=built/teacher-sizes ${arms[$arm]}
      fi
    done
  done
  vistill report distill --teacher "the captioner at four sizes=runs/evaluate/teacher-sizes" --data built/flickr8k-extra \
    --row "no teacher=$(row none)" --row "its captions and likeliest words=$(row teacher)" \
    --examples 0 --out "runs/report-$student"
done
