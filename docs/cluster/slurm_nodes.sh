#!/bin/bash
# One training stage on several nodes, through torchrun, without Prefect and MLflow. All nodes see the same folders. It
# resumes from its checkpoint if the job is preempted or reaches its time limit. WORK.json is the file that a pipeline
# wrote into the stage's folder (docs/deploying.md, "A stage by hand"). Submit it in an activated environment:
#   sbatch --nodes=2 --gpus-per-node=8 docs/cluster/slurm_nodes.sh /shared/alpro/artifacts/pretrain/<...>/work.json
#SBATCH --job-name=alpro-nodes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -u

if [ $# -ne 1 ] || [ ! -f "$1" ]; then
  echo "usage: sbatch $0 WORK.json" >&2
  exit 2
fi
work=$(realpath "$1")
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
srun python -m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-backend c10d --rdzv-endpoint "$host:$port" --rdzv-id "$SLURM_JOB_ID" -m alpro.pipeline.execution.run_stage "$work" &
step=$!
ended=
# Slurm sends SIGTERM to this shell before the time limit, and to the step if the job is preempted. (srun would kill the
# step if it received SIGTERM.) A signal ends `wait` early: the status of the step is that of the second `wait`.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"; wait "$step"; ended=$?' TERM
wait "$step"
status=${ended:-$?}

# torchrun exits with a status of its own; the stage writes why it ended beside its work file. A job that was cancelled
# is no longer running.
if [ "$status" -ne 0 ] && grep -qs '"interrupted"' "$(dirname "$work")/result.json"; then
  if [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
    echo "interrupted; the job is queued again and resumes" >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status"
