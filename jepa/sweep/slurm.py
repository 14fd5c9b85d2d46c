"""What SLURM says of its jobs, on sites with and without accounting. Needs its commands on PATH."""

from __future__ import annotations

import re
import subprocess

ANSWER_SECONDS = 30
"""How long a command of SLURM may take to answer."""


def queued_jobs() -> dict[str, str] | None:
    """This user's jobs that have not ended, by id ("17", or "17_3" in an array): PENDING, RUNNING, COMPLETING, ...

    None where squeue is missing or does not answer, which says nothing about any job.
    """
    output = _asked("squeue", "--me", "--noheader", "--array", "--format", "%i %T")
    if output is None:
        return None
    return dict(line.split()[:2] for line in output.splitlines() if len(line.split()) >= 2)


def how_it_ended(job: str) -> str:
    """How a job that has left the queue has ended, in SLURM's words: "CANCELLED", "TIMEOUT", "FAILED, exit code 1:0".

    Asks the controller, which forgets after some minutes, then the accounting, which some sites lack.
    """
    shown = _asked("scontrol", "show", "job", job)
    fields = dict(re.findall(r"(\w+)=(\S+)", shown or ""))
    if "JobState" not in fields:
        line = (_asked("sacct", "-X", "-n", "-P", "-o", "State,ExitCode", "-j", job) or "").strip().partition("\n")[0]
        state, _, code = line.partition("|")
        fields = {"JobState": state.split()[0], "ExitCode": code} if state else {}
    state, code = fields.get("JobState"), fields.get("ExitCode", "0:0")
    if state is None:
        return "ended, SLURM no longer knows how"
    return state if code in ("0:0", "") or state == "CANCELLED" else f"{state}, exit code {code}"


def _asked(*command: str) -> str | None:
    """What a command prints; None where it is missing, fails or does not answer."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
