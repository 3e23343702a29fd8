#!/usr/bin/env bash
# Train on several hosts with SLURM, from a folder that all of them share: sbatch slurm.sh my-recipe.toml [OPTION ...]
#SBATCH --job-name=mathrl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
# three minutes before its time is over the run saves its last whole step; when a host fails, SLURM starts this anew
set -u
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))

stop=
for round in $(seq 0 "${RESTARTS:-3}"); do
    # a whole new torchrun: one that restarts ranks by itself keeps the dead ones' addresses
    srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node gpu --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
        --rdzv-endpoint "$first" -m mathrl train "$@" --resume &
    child=$!
    trap 'stop=1; kill -TERM "$child"' INT TERM
    wait "$child"
    code=$?
    [ -z "$stop" ] || wait "$child"
    [ "$code" -ne 0 ] || exit 0
    [ -z "$stop" ] || exit 130
    sleep "${PAUSE:-20}"
done
exit "$code"
