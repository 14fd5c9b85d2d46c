#!/usr/bin/env bash
#SBATCH --job-name=jepa
#SBATCH --output=outputs/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
#
# Training by torchrun on the nodes of a SLURM job, going on after each time limit. From the repository's root:
#
#   sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=32 --time=12:00:00 scripts/slurm_torchrun.sh \
#       data=imagenet data.root=/data/imagenet trainer=ddp
#
# All arguments are those of train.py. Options of sbatch win over the lines above. The run's folder is
# outputs/slurm-<job id> and resume=auto, unless given. 120 s before the time limit the training saves and stops, and
# the job goes back into the queue, where it starts again, with the same id, from where it was.
#
#   NPROC_PER_NODE   processes on each node (as many as the job has GPUs on its first node; 1 without GPUs)
#   MAX_REQUEUES     how often the job may go back into the queue (20)
#   PYTHON           the interpreter (.venv/bin/python)
#
# More time to save than 120 s: sbatch --signal=B:USR2@300. Where a site preempts with a grace time, this script only
# hears of it with PreemptParameters=send_user_signal in slurm.conf, else SLURM ends the job as it sees fit.
set -euo pipefail

fail() {
    echo "slurm_torchrun.sh: $1" >&2
    exit 2
}

[[ -n ${SLURM_JOB_ID:-} ]] || fail "to be submitted: sbatch --nodes=2 --gpus-per-node=4 scripts/slurm_torchrun.sh ..."
[[ -f train.py ]] || fail "no train.py in $PWD: submit it from the repository's root"
PYTHON=${PYTHON:-.venv/bin/python}
[[ -x $PYTHON ]] || command -v "$PYTHON" >/dev/null || fail "no $PYTHON: make install makes it, or set PYTHON"

processes=${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
restarts=${SLURM_RESTART_COUNT:-0}

arguments=("$@")
run_folder="hydra.run.dir=outputs/slurm-$SLURM_JOB_ID" resume="resume=auto"
for argument in "$@"; do
    case $argument in
    -m | --multirun) fail "a sweep is submitted by train.py itself: python train.py -m hydra/launcher=slurm ..." ;;
    hydra.run.dir=*) run_folder="" ;;
    resume=auto) resume="" ;;
    resume=*) # a run to go on with, in its own folder
        [[ -f ${argument#resume=}/config.yaml ]] || fail "$argument is not a run's folder, in which each start goes on"
        resume="" run_folder=""
        ;;
    esac
done
arguments+=(${run_folder:+"$run_folder"} ${resume:+"$resume"})

# torchrun as SLURM needs it. Each node is told whether it is the meeting point and what the others call it, which
# torchrun would find out from names that a site may resolve in its own way. SLURM's signals reach every process of a
# step: USR2, of which torchrun would die, is for train.py, so torchrun gets a handler, which (unlike an ignored signal)
# its workers do not inherit. TERM it would pass on, but it kills its workers 30 s later (older versions have no option
# for that), and srun ends the step. Last, it ends with the code of its first worker that failed, without a traceback,
# as train.py has said why; the first node ends last, where the others say good-bye.
torchrun='
import os, signal, sys, time
signal.signal(signal.SIGUSR2, lambda *_: None)
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main
first = os.environ["SLURM_NODEID"] == "0"
try:
    main([f"--rdzv_conf=is_host={int(first)}", "--local_addr=" + os.environ["SLURMD_NODENAME"], *sys.argv[1:]])
except SignalException as stop:
    sys.exit(128 + stop.sigval)
except ChildFailedError as error:
    time.sleep(3 if first else 0)
    code = error.get_first_failure()[1].exitcode
    sys.exit(code if code > 0 else 128 - code)
'
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
command=(
    "$PYTHON" -c "$torchrun"
    --nnodes="$SLURM_NNODES" --nproc_per_node="$processes" --max-restarts=0
    --rdzv_backend=c10d --rdzv_endpoint="${nodes[0]}:$((20000 + SLURM_JOB_ID % 10000))"
    --rdzv_id="$SLURM_JOB_ID-$restarts"
    train.py "${arguments[@]}"
)
# Where SLURM preempts by TERM and leaves time, torchrun shall not cut it to 30 s. Older versions do not look at this.
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-600}
# Since 22.05 srun does not take this over from sbatch, and all processes of a node would share one core.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

echo "job $SLURM_JOB_ID, start $((restarts + 1)): $processes processes on each of ${nodes[*]}"
# One node may end a while before another, whose rank 0 still closes its loggers.
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 \
    "${command[@]}" &
srun=$!

# bash runs a trap only when what it waits for has ended, or in `wait`, which it interrupts.
interrupted=""
trap 'interrupted=yes; kill -USR2 "$srun" 2>/dev/null || true' USR2
# scontrol requeue, scancel and preemption tell the processes of the training themselves, and see to what follows.
trap 'interrupted=yes' TERM
while
    status=0
    wait "$srun" || status=$?
    [[ -n $interrupted ]]
do
    interrupted=""
done

if ((status != 128 + $(kill -l USR2))); then # the training has ended otherwise
    exit "$status"
fi
if ((restarts >= ${MAX_REQUEUES:-20})); then
    echo "the time is over and the job has been requeued $restarts times: sbatch the same command with" \
        "resume=<the run's folder> to go on, or set MAX_REQUEUES" >&2
    exit "$status"
fi
echo "the time is nearly over: job $SLURM_JOB_ID goes back into the queue"
scontrol requeue "$SLURM_JOB_ID"
exit "$status"
