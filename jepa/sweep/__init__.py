"""Running studies: launchers for this machine and for SLURM, and sweeps by Optuna. Results: see `jepa.report`."""
