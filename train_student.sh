#!/bin/sh
# Stages 2 to 4: clouds and images of a teacher, RipsNet, students. Edit the variables, or set them for one call:
#   sh train_student.sh                                   TopKD, ResNet56 > ResNet20, three seeds
#   TOPOLOGY= sh train_student.sh                         KD
#   TOPOLOGY= DISTILL=crd sh train_student.sh             another method; without TOPOLOGY= topology is added to it
#   TOPOLOGY= GAMMA=1 ALPHA=2 sh train_student.sh         KD with TopKD's weight, the control
#   PATH_T=save_t_models/wrn_40_2_cifar100_trial1/best.pth MODEL_S=ShuffleV1 OPERATOR=sum sh train_student.sh
# What follows goes to train_student.py:
#   sh train_student.sh --amp bf16
# Run again, it continues what was interrupted and skips what is finished.
set -eu
cd "$(dirname "$0")"
. helper/environment.sh

PATH_T=${PATH_T:-save_t_models/resnet56_cifar100_trial1/best.pth}   # from train_teacher.sh
MODEL_T=${MODEL_T:-}                # only for a checkpoint that does not name its architecture
MODEL_S=${MODEL_S:-resnet20}
DATASET=${DATASET:-cifar100}
TRIALS=${TRIALS:-1 2 3}             # a trial's number is its seed

# The loss: GAMMA * CE + ALPHA * KD + BETA * the method's own + DELTA * topology. Empty: the method's or the pair's.
DISTILL=${DISTILL:-kd}
GAMMA=${GAMMA:-}
ALPHA=${ALPHA:-}
BETA=${BETA:-}
DELTA=${DELTA:-}
TOPOLOGY=${TOPOLOGY-ripsnet}        # ripsnet, exact, wasserstein, or empty for none
OPERATOR=${OPERATOR:-mean}          # RipsNet's pooling; published: sum for WRN-40-2 > ShuffleNetV1

# The clouds and images.
DIM=${DIM:-0}                       # homology dimension: 0, 1 or 01
LAYER_T=${LAYER_T:--1}              # -1 is the pooled vector before the classifier
PASSES=${PASSES:-256}               # for ImageNet 10
CLOUD_SEED=${CLOUD_SEED:-0}         # of the shipped sets 1, with 16 passes
PCD_BN=${PCD_BN:-eval}              # train: with batch statistics, as the authors made the clouds
SIGMA_RULE=${SIGMA_RULE:-released}

# The schedule. Empty: as published for CIFAR-100 (for ImageNet).
EPOCHS=${EPOCHS:-}                  # 240 (100)
LR_DECAY_EPOCHS=${LR_DECAY_EPOCHS:-}    # 150,180,210 (30,60,90)
BATCH_SIZE=${BATCH_SIZE:-}          # 64, which are also the points in a cloud (256, four clouds)
LR=${LR:-}                          # 0.05, of MobileNetV2 and the ShuffleNets 0.01 (0.1)
RIPSNET_EPOCHS=${RIPSNET_EPOCHS:-25000}   # at most
TEACHER_CACHE=${TEACHER_CACHE:-}    # 1: stage 2 and the students read a table of the teacher's outputs

# Calls a program with what stages 2, 3 and 4 must agree on.
stage() {
    program=$1
    shift
    "$PYTHON" "$program" --path_t "$PATH_T" ${MODEL_T:+--model_t "$MODEL_T"} --dataset "$DATASET" \
        ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} --dim "$DIM" --tda_layer_t "$LAYER_T" --pcd_bn "$PCD_BN" \
        --sigma_rule "$SIGMA_RULE" "$@"
}

if [ "$DELTA" = 0 ]; then
    TOPOLOGY=
fi
if [ -z "$TOPOLOGY" ]; then
    DELTA=
fi
case $TOPOLOGY in ripsnet | exact)
    from_table=$TEACHER_CACHE
    if [ "$PCD_BN" = train ]; then
        from_table= # which holds what the teacher makes in eval mode
    fi
    stage generate_PCD_PI.py --passes "$PASSES" --seed "$CLOUD_SEED" ${from_table:+--teacher_cache}
esac
if [ "$TOPOLOGY" = ripsnet ]; then
    stage train_ripsnet.py --operator "$OPERATOR" --epochs "$RIPSNET_EPOCHS" --resume
else
    OPERATOR=
fi

for trial in $TRIALS; do
    stage train_student.py --model_s "$MODEL_S" --trial "$trial" --resume \
        --distill "$DISTILL" ${GAMMA:+-r "$GAMMA"} ${ALPHA:+-a "$ALPHA"} ${BETA:+-b "$BETA"} ${DELTA:+-d "$DELTA"} \
        ${TOPOLOGY:+--topology "$TOPOLOGY"} ${OPERATOR:+--operator "$OPERATOR"} \
        ${EPOCHS:+--epochs "$EPOCHS"} ${LR_DECAY_EPOCHS:+--lr_decay_epochs "$LR_DECAY_EPOCHS"} ${LR:+--lr "$LR"} \
        ${TEACHER_CACHE:+--teacher_cache} "$@"
done
