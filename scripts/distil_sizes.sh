#!/bin/bash
# Students of the captioner in the package, with and without a teacher: docs/distillation.md.
#
#   VISTILL_DATA=FOLDER scripts/distil_sizes.sh [OUT]
#
# FOLDER holds flickr8k/ and imagenet_sample1000/; OUT (built and runs) is by default the current folder. The teacher
# is checkpoints/flickr8k-captioner, shown each picture at four sizes. `anew` learns from random weights, `small` goes
# on from two of its three decoder layers. Every step is skipped or continued when the script is run again. On two
# cores without AVX-512: 25 minutes for the teacher's answers, two hours for the students.
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

declare -A starts=([anew]="tower_from=$parent" [small]="init_from=$parent")
declare -A arms=(
  [none]=""
  [teacher]="objective.cross_entropy=0.2 objective.teacher_cross_entropy=0.3 objective.top_k_kl=1.0"
)
row() { printf "runs/evaluate/$1-%s," 0 1 2 | sed 's/,$//'; }
for student in anew small; do
  for seed in 0 1 2; do
    for arm in none teacher; do
      name=$student-$arm-$seed
      if [[ ! -f runs/$name/done ]]; then
        # shellcheck disable=SC2086
        vistill train experiment=flickr8k-captioner-$student name=$name "${starts[$student]}" trainer.seed=$seed \
          datamodule.teacher=built/teacher-sizes ${arms[$arm]} $([[ -f runs/$name/last.ckpt ]] && echo --resume || true)
        touch "runs/$name/done"
      fi
      score "$name" "runs/$name/best"
    done
  done
  vistill report distill --teacher "the captioner at four sizes=runs/evaluate/teacher-sizes" --data built/flickr8k-extra \
    --row "no teacher=$(row $student-none)" --row "its captions and likeliest words=$(row $student-teacher)" \
    --examples 0 --out "runs/report-$student"
done
