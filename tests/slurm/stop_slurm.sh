#!/usr/bin/env bash
# Ends the jobs and the daemons of start_slurm.sh.   usage: stop_slurm.sh STATE_DIR
D=$(realpath -m "${1:?state dir}"); export SLURM_CONF="$D/slurm.conf"
scancel --user=root
# Who oversees a job's processes outlives the daemons, unless they have heard from it.
for _ in $(seq 100); do [ -z "$(squeue --noheader)" ] && break; sleep 0.2; done
pids=()
for f in "$D"/run/{slurmd,slurmctld,slurmdbd}.pid "$D/db/my.pid"; do [ -s "$f" ] && pids+=("$(cat "$f")"); done
for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
for _ in $(seq 100); do kill -0 "${pids[@]}" 2>/dev/null || break; sleep 0.1; done
