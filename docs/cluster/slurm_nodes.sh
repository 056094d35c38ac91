#!/bin/bash
# One training stage on several nodes, which see the same folders. The first node runs the pipeline, the others wait for
# it to start the stage, and end when it ends. It resumes from its checkpoint if the job is preempted or reaches its time limit. Submit it in
# an activated environment, with the stage, the workspace, and the options of `alpro run`:
#   sbatch --nodes=2 --gpus-per-node=8 docs/cluster/slurm_nodes.sh pretrain /shared/alpro --config /shared/mine.toml
#SBATCH --job-name=alpro-nodes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64  # eight GPUs read 2,000 samples/s or more; a core loads about 240
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -u

if [ $# -lt 2 ] || [ ! -d "$2" ]; then
  echo "usage: sbatch $0 STAGE WORKSPACE [OPTION...]" >&2
  exit 2
fi
export stage=$1 workspace=$2 processes=${SLURM_GPUS_ON_NODE:-1} nodes=$SLURM_NNODES
shift 2
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export rendezvous=$host:$((20000 + SLURM_JOB_ID % 10000))
if [ "$nodes" -gt 1 ]; then
  # A job that is queued again keeps its number: the other nodes wait for what it starts now.
  grep -lsZ "$rendezvous" "$workspace"/artifacts/"$stage"/*/work.json | xargs -0 rm -f
  # Slurm ends this step when the script ends.
  # shellcheck disable=SC2016 # each node expands the variables
  srun --relative=1 --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) bash -c '
  until work=$(grep -ls "$rendezvous" "$workspace"/artifacts/"$stage"/*/work.json); do sleep 5; done
  export PYTHONSAFEPATH=1 # nothing is imported from the current folder
  exec python -m torch.distributed.run --log-dir /dev/null --nproc-per-node "$processes" \
    --nnodes "$nodes" --node-rank $((SLURM_PROCID + 1)) --rdzv-endpoint "$rendezvous" --rdzv-conf timeout=120 \
    --rdzv-id "$(basename "$(dirname "$work")")" -m alpro.pipeline.execution.run_stage "$work"
  ' &
fi
srun --relative=0 --nodes=1 --ntasks=1 alpro run "$stage" --workspace "$workspace" "$@" \
  --set resources.processes="$processes" --set resources.nodes="$nodes" --set resources.rendezvous="$rendezvous" &
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
