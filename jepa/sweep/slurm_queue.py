"""Jobs in SLURM's queue and how they ended, by its command-line tools, on sites with and without accounting."""

from __future__ import annotations

import re
import subprocess

TIMEOUT_SECONDS = 30


def queued_jobs() -> dict[str, str] | None:
    """Return this user's jobs in the queue: id ("17", or "17_3" in an array) -> PENDING, RUNNING, COMPLETING, ...

    None if squeue is missing or does not answer, so that nothing is known about any job.
    """
    output = _output_of("squeue", "--me", "--noheader", "--array", "--format", "%i %T")
    if output is None:
        return None
    return dict(line.split()[:2] for line in output.splitlines() if len(line.split()) >= 2)


def end_of_job(job: str) -> str:
    """Return how a job ended, in SLURM's words: "CANCELLED", "TIMEOUT", "FAILED, exit code 1:0".

    Asks the controller, which forgets jobs after some minutes, then the accounting, which some sites lack.
    """
    fields = dict(re.findall(r"(\w+)=(\S+)", _output_of("scontrol", "show", "job", job) or ""))
    if "JobState" not in fields:
        output = _output_of("sacct", "-X", "-n", "-P", "-o", "State,ExitCode", "-j", job) or ""
        state, _, code = output.strip().partition("\n")[0].partition("|")
        fields = {"JobState": state.split()[0], "ExitCode": code} if state else {}
    state, code = fields.get("JobState"), fields.get("ExitCode", "0:0")
    if state is None:
        return "ended, SLURM no longer knows how"
    return state if code in ("0:0", "") or state == "CANCELLED" else f"{state}, exit code {code}"


def _output_of(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None
