#!/bin/bash
# Decode on several nodes, which see the same folders: the first one also runs a Dask scheduler and the pipeline, and each
# one a worker with all its cores. If the job is preempted or reaches its time limit, it is queued again, and continues
# with the units that are not finished. Submit it in an activated environment, with the stage and the options of `alpro run`:
#   sbatch --nodes=8 docs/cluster/slurm_decode.sh decode_videos --config /shared/mine.toml --workspace /shared/alpro
#SBATCH --job-name=alpro-decode
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -u

if [ $# -eq 0 ]; then
  echo "usage: sbatch $0 STAGE [OPTION...]" >&2
  exit 2
fi
port=$((20000 + SLURM_JOB_ID % 10000))
scheduler=tcp://$(hostname):$port
dask scheduler --port "$port" --no-dashboard &
srun dask worker "$scheduler" --nthreads "$SLURM_CPUS_PER_TASK" --no-nanny --local-directory "${TMPDIR:-/tmp}" &
alpro run "$@" --set resources.scheduler="$scheduler" &
pipeline=$!
ended=
# Slurm sends SIGTERM to this shell before the time limit. A signal ends `wait` early: the status of the pipeline is that
# of the second `wait`.
trap 'kill -TERM "$pipeline"; wait "$pipeline"; ended=$?' TERM
wait "$pipeline"
status=${ended:-$?}

# A job that was cancelled is no longer running.
if [ -n "$ended" ] && [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
