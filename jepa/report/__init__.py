"""Reports: leaderboards of sweeps, the status of runs, the dry run, and figures."""
