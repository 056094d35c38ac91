#!/bin/bash
# A Prefect worker as a Slurm job: it takes runs from a work pool as long as the job lasts. If the job is preempted or
# reaches its time limit, its runs write checkpoints and end, and the job is queued again. Submit it in an activated
# environment, with the address of Prefect's server and the workspace of its runs:
#   export PREFECT_API_URL=http://server.example.com:4200/api ALPRO_WORKSPACE=/shared/alpro
#   sbatch docs/cluster/slurm_worker.sh gpu
#   sbatch --gpus=0 docs/cluster/slurm_worker.sh cpu 4
#SBATCH --job-name=alpro-worker
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -u

if [ $# -eq 0 ] || [ -z "${PREFECT_API_URL:-}" ] || [ -z "${ALPRO_WORKSPACE:-}" ]; then
  echo "usage: PREFECT_API_URL=http://HOST:4200/api ALPRO_WORKSPACE=/FOLDER sbatch $0 POOL [RUNS AT A TIME]" >&2
  exit 2
fi
# A job that is queued again keeps its number, and its worker its name.
srun python -m alpro.pipeline.flows.worker "$1" "job-$SLURM_JOB_ID" "${2:-1}" &
step=$!
ended=
# Slurm sends SIGTERM to this shell before the time limit, and to the step if the job is preempted. (srun would kill the
# step if it received SIGTERM.) A signal ends `wait` early: the status of the step is that of the second `wait`.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"; wait "$step"; ended=$?' TERM
wait "$step"
status=${ended:-$?}

# A job that was cancelled is no longer running.
if [ -n "$ended" ] && [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
