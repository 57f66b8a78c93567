#!/bin/sh
# One machine's part of a run: the same line on each of them. Started again, it goes on from the last checkpoint.
#
#   runs/node.sh train fast --data /shared/photos --out /shared/runs/fast                         # all GPUs of this one
#   NODES=2 HEAD=first-host:29500 runs/node.sh train fast --data /shared/photos --out /shared/runs/fast    # on both
#
# NODES    machines, or least:most (default 1)          HEAD      host:port of the first one (default localhost:29500)
# NODE     this one's number among them, HEAD's is 0, where they are numbered; then nobody looks up names of hosts
# PROCESSES  of each: a number, gpu, cpu or auto (default auto: one a GPU, else one a core)
# RESTARTS  how often processes that die are started again (default 3)
set -eu
HEAD=${HEAD:-localhost:29500}
if [ -n "${NODE:-}" ]; then
    meet="--node-rank $NODE --master-addr ${HEAD%:*} --master-port ${HEAD##*:}"
else
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # what an attempt left in the shared store breaks the next one
    meet="--rdzv-backend c10d --rdzv-endpoint $HEAD --rdzv-id ${RUN_ID:-vitrail}"
fi
# shellcheck disable=SC2086 - several words
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes "${NODES:-1}" --nproc-per-node "${PROCESSES:-auto}" \
    $meet --max-restarts "${RESTARTS:-3}" -m vitrail "$@"
