#!/bin/bash
# Students of checkpoints/flickr8k-captioner, with and without a teacher, and the captioner in the package:
# docs/distillation.md.
#
#   VISTILL_DATA=FOLDER scripts/distil_sizes.sh [OUT]
#
# FOLDER holds flickr8k/ and imagenet_sample1000/; OUT (built and runs) is by default the current folder. The teacher
# is checkpoints/flickr8k-captioner, shown each picture at four sizes. `anew` learns from random weights, and then
# self-critically as `scst`; `small` goes on from two of its three decoder layers. At the end stands the model in the
# package, built/distilled-teacher-int8, and beside it the same without a teacher. Every step is skipped or continued
# when the script is run again. Without AVX-512: 25 minutes of two cores for the teacher's answers, seven hours of one
# core for the students.
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

# The model in the package: the student of seed 3 goes on for four epochs (again), from there self-critically four
# times, and the mean of these four in int8 gets a consensus head. The same without a teacher.
[[ -d built/flickr8k ]] || vistill data build flickr8k "$data/flickr8k" --out built/flickr8k
# bundle NAME MODEL: export it in int8 with a consensus head and evaluate that, unless it is done
bundle() {
  [[ -d built/$1-int8 ]] ||
    vistill export "$2" --out "built/$1-int8" --quantize int8 --data built/flickr8k --consensus train --num-beams 5
  [[ -f runs/evaluate/$1/metrics.json ]] ||
    vistill evaluate "built/$1-int8" --data built/flickr8k --pictures 0 --out "runs/evaluate/$1"
}
for arm in none teacher; do
  # shellcheck disable=SC2086
  run "again-$arm" experiment=flickr8k-captioner-anew "init_from=runs/anew-$arm-3/best" tower_from= trainer.seed=13 \
    trainer.max_epochs=4 trainer.validate_every=2 datamodule.dev_samples=300 optim.lr=5e-4 \
    datamodule.teacher=built/teacher-sizes ${arms[$arm]}
  last=(experiment=flickr8k-captioner-anew-scst "init_from=runs/again-$arm/best")
  run "again-$arm-scst" "${last[@]}" trainer.seed=3
  members=("runs/again-$arm-scst/best")
  for seed in 3 4 5; do
    run "again-$arm-scst-gold-$seed" "${last[@]}" trainer.seed=$seed objective.cross_entropy=1 trainer.max_epochs=1
    members+=("runs/again-$arm-scst-gold-$seed/best")
  done
  [[ -d built/distilled-$arm ]] || python "$scripts/average_checkpoints.py" "${members[@]}" "built/distilled-$arm"
  bundle "distilled-$arm" "built/distilled-$arm"
done
bundle parent "$parent"
vistill report distill --teacher "the teacher at one size=runs/evaluate/parent" --data built/flickr8k \
  --row "no teacher=runs/evaluate/distilled-none" \
  --row "with the teacher: the model in the package=runs/evaluate/distilled-teacher" \
  --examples 0 --out runs/report-distilled
