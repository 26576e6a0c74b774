#!/bin/bash
# A smaller captioner out of the one in the package, with and without a teacher: docs/distillation.md.
#
#   VISTILL_DATA=FOLDER scripts/distil_small.sh [OUT]
#
# FOLDER holds flickr8k/ and imagenet_sample1000/; OUT (built and runs) is by default the current folder. The teacher
# is checkpoints/flickr8k-captioner, shown each picture at four sizes. Every step is skipped or continued when the
# script is run again. On two cores without AVX-512: 25 minutes for the teacher's answers, an hour for the students.
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

declare -A arms=(
  [none]=""
  [teacher]="objective.cross_entropy=0.2 objective.teacher_cross_entropy=0.3 objective.top_k_kl=1.0"
)
for seed in 0 1 2; do
  for arm in none teacher; do
    name=small-$arm-$seed
    if [[ ! -f runs/$name/done ]]; then
      # shellcheck disable=SC2086
      vistill train experiment=flickr8k-captioner-small name=$name init_from="$parent" trainer.seed=$seed \
        datamodule.teacher=built/teacher-sizes ${arms[$arm]} $([[ -f runs/$name/last.ckpt ]] && echo --resume || true)
      touch "runs/$name/done"
    fi
    [[ -f runs/evaluate/$name/metrics.json ]] ||
      vistill evaluate "runs/$name/best" --data built/flickr8k-extra --num-beams 3 --pictures 4 --out "runs/evaluate/$name"
  done
done
[[ -f runs/evaluate/teacher-sizes/metrics.json ]] ||
  vistill evaluate "$teacher" --data built/flickr8k-extra --num-beams 3 --pictures 4 --out runs/evaluate/teacher-sizes

row() { printf "runs/evaluate/small-$1-%s," 0 1 2 | sed 's/,$//'; }
vistill report distill --teacher "the captioner at four sizes=runs/evaluate/teacher-sizes" --data built/flickr8k-extra \
  --row "no teacher=$(row none)" --row "its captions and likeliest words=$(row teacher)" \
  --examples 0 --out runs/report-small
