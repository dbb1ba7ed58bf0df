#!/bin/sh
# The whole chain in a few minutes on two CPU cores, on handwritten digits that come with scikit-learn.
#   sh demo.sh
#   EPOCHS_S=30 SEED=2 sh demo.sh     every variable below can be set so
# It shows that the stages work together. 359 test images and short schedules say nothing about the methods' ranks.
set -eu
cd "$(dirname "$0")"
. helper/environment.sh

MODEL_T=${MODEL_T:-resnet20}
MODEL_S=${MODEL_S:-resnet8}
SEED=${SEED:-1}
EPOCHS_T=${EPOCHS_T:-10}            # teacher
DECAY_T=${DECAY_T:-6,9}             # its learning rate falls tenfold after these epochs
EPOCHS_S=${EPOCHS_S:-12}            # each student
DECAY_S=${DECAY_S:-8,11}
PASSES=${PASSES:-24}                # over the 1,438 training images, 22 clouds of 64 points each
EPOCHS_R=${EPOCHS_R:-250}           # RipsNet, at most
# bf16 is faster where the device has it, and far slower where a CPU emulates it.
AMP=${AMP:-$("$PYTHON" -c '
from helper.cli.types import default_device
from helper.training.objective import has_bf16
print("bf16" if has_bf16(default_device()) else "off")')}
OPERATOR=${OPERATOR:-sum}           # its pooling; with so few clouds, mean pooling stays at the mean image

# The programs write below the current folder; everything from an earlier demo goes.
rm -rf results/demo
mkdir -p results/demo
cd results/demo

stage() {
    echo
    echo "--- $*"
}

train_student() {
    "$PYTHON" ../../train_student.py --path_t "$teacher" --model_s "$MODEL_S" --dataset digits --trial "$SEED" \
        --amp "$AMP" --epochs "$EPOCHS_S" --lr_decay_epochs "$DECAY_S" "$@"
}

stage "1. the teacher, $MODEL_T"
"$PYTHON" ../../train_teacher.py --model "$MODEL_T" --dataset digits --trial "$SEED" --amp "$AMP" \
    --epochs "$EPOCHS_T" --lr_decay_epochs "$DECAY_T"
teacher=save_t_models/${MODEL_T}_digits_trial$SEED/best.pth

stage "2. its point clouds, their persistence diagrams and images"
"$PYTHON" ../../generate_PCD_PI.py --path_t "$teacher" --dataset digits --passes "$PASSES" --seed "$SEED"

stage "3. RipsNet, which approximates these images"
"$PYTHON" ../../train_ripsnet.py --path_t "$teacher" --dataset digits --operator "$OPERATOR" \
    --epochs "$EPOCHS_R" --batch_clouds 16 --seed "$SEED"

stage "4. students, $MODEL_S: cross entropy alone"
train_student -r 1 -a 0 -d 0
stage "4. students: KD"
train_student
stage "4. students: TopKD, which is KD + topology through RipsNet"
train_student -d 5 --operator "$OPERATOR"
stage "4. students: KD + topology by exact persistence images"
train_student -d 5 --topology exact
stage "4. students: cross entropy + topology by exact persistence images"
train_student -r 1 -a 0 -d 5 --topology exact

stage "the table"
"$PYTHON" ../../make_tables.py --out tables.md
stage "the figure: exact persistence images against RipsNet's"
"$PYTHON" ../../visualize.py pi --path_t "$teacher" --dataset digits --operator "$OPERATOR" --out figures

echo
echo "One seed and 359 test images: differences of a point or two are noise."
echo "table    results/demo/tables.md"
echo "figure   results/demo/figures/ (with its data as CSV)"
