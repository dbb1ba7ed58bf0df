#!/bin/sh
# Stage 1: trains teachers. Edit the variables, or set them for one call:
#   MODEL=vgg13 TRIALS="1 2 3" sh train_teacher.sh
# What follows goes to train_teacher.py:
#   sh train_teacher.sh --amp bf16
# Run again, it continues what was interrupted and skips what is finished.
set -eu
cd "$(dirname "$0")"
. helper/environment.sh

TRIALS=${TRIALS:-1}                 # such as "1 2 3"; a trial's number is its seed
MODEL=${MODEL:-resnet56}
DATASET=${DATASET:-cifar100}
# The schedule. Empty: as published for CIFAR-100 (for ImageNet).
EPOCHS=${EPOCHS:-}                  # 240 (100)
LR_DECAY_EPOCHS=${LR_DECAY_EPOCHS:-}    # 150,180,210 (30,60,90)
BATCH_SIZE=${BATCH_SIZE:-}          # 64 (256)
LR=${LR:-}                          # 0.05, of MobileNetV2 and the ShuffleNets 0.01 (0.1)

for trial in $TRIALS; do
    "$PYTHON" train_teacher.py --model "$MODEL" --dataset "$DATASET" --trial "$trial" --resume \
        ${EPOCHS:+--epochs "$EPOCHS"} ${LR_DECAY_EPOCHS:+--lr_decay_epochs "$LR_DECAY_EPOCHS"} \
        ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} ${LR:+--lr "$LR"} "$@"
done
