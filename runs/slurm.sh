#!/bin/sh
#SBATCH --job-name=vitrail
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
# One torchrun on each machine of a Slurm job; a job that is requeued, with more machines or fewer, goes on.
#
#   sbatch --nodes=4 --gpus-per-node=8 runs/slurm.sh train fast --data /shared/photos --out /shared/runs/fast
set -eu
NODES=$SLURM_JOB_NUM_NODES
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):${PORT:-29500}
RUN_ID=$SLURM_JOB_ID
export NODES HEAD RUN_ID
here=${VITRAIL_RUNS:-$(dirname "$0")}
# Slurm copies this file before it runs it: where node.sh lies, VITRAIL_RUNS says, or the folder that sbatch was called in.
[ -f "$here/node.sh" ] || here=$SLURM_SUBMIT_DIR/runs
exec srun sh "$here/node.sh" "$@"
