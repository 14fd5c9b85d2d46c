#!/usr/bin/env bash
# Installs the SLURM that the tests in tests/cluster start for themselves: as root, bash tests/cluster/install_slurm.sh
#
# Only programs are wanted: the tests bring their own configuration, and no service of the packages is used.
set -euo pipefail

missing=()
for command in munged sbatch slurmctld slurmd; do
    command -v "$command" >/dev/null || missing+=("$command")
done
if ((${#missing[@]} == 0)); then
    echo "SLURM is installed already"
    exit 0
fi

if ((EUID != 0)); then
    echo "${missing[*]} missing: run this as root (sudo bash $0)" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "${missing[*]} missing, and no apt-get here: install slurmctld, slurmd, the SLURM commands and munge yourself" >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
echo "installed SLURM: $(slurmctld -V)"
