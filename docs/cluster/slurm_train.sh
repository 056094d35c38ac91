#!/bin/bash
# A command of alpro as a Slurm job on one node. It resumes from its checkpoint if the job is preempted or reaches its
# time limit. Submit it in an activated environment, from the folder to which paths are relative:
#   sbatch docs/cluster/slurm_train.sh run pretrain --config /shared/mine.toml --workspace /shared/alpro
# Several GPUs, with eight cores for each:
#   sbatch --gpus=4 --cpus-per-task=32 docs/cluster/slurm_train.sh run pretrain --set resources.processes=4 ...
#SBATCH --job-name=alpro
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -u

if [ $# -eq 0 ]; then
  echo "usage: sbatch $0 COMMAND [OPTION...], such as: run pretrain --config sample" >&2
  exit 2
fi
srun alpro "$@" &
step=$!
ended=
# Slurm sends SIGTERM to this shell before the time limit, and to the step if the job is preempted. (srun would kill the
# step if it received SIGTERM.) A signal ends `wait` early: the status of the step is that of the second `wait`.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"; wait "$step"; ended=$?' TERM
wait "$step"
status=${ended:-$?}

# 143: ended by SIGTERM, with a checkpoint. A job that was cancelled is no longer running.
if [ "$status" -eq 143 ]; then
  if [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
    echo "interrupted; the job is queued again and resumes" >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status"
