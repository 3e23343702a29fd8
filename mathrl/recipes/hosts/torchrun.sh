#!/usr/bin/env bash
# Train on several hosts, by hand: start this on each of them, in one folder that all of them share.
#
#   HOSTS=2 FIRST=host0:29400 bash torchrun.sh my-recipe.toml [--section.key value ...]
#
# HOSTS: how many there are. FIRST: the name of one of them and a free port there. GPUS: processes a host, by
# default one a GPU. RESTARTS: how often a run that lost a process or a host goes on from its last checkpoint.
set -u
: "${HOSTS:?how many hosts there are}" "${FIRST:?a host and a port on it, such as host0:29400}"

stop=
for round in $(seq 0 "${RESTARTS:-3}"); do
    # a whole new torchrun: one that restarts ranks by itself keeps the dead ones' addresses
    torchrun --nnodes "$HOSTS" --nproc-per-node "${GPUS:-gpu}" --rdzv-id mathrl --rdzv-backend c10d \
        --rdzv-endpoint "$FIRST" -m mathrl train "$@" --resume &
    child=$!
    trap 'stop=1; kill -TERM "$child"' INT TERM
    wait "$child"
    code=$?
    [ -z "$stop" ] || wait "$child"
    [ "$code" -ne 0 ] || exit 0
    [ -z "$stop" ] || exit 130
    sleep "${PAUSE:-20}" # the others see it end, and come back as well
done
exit "$code"
