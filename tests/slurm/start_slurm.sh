#!/usr/bin/env bash
# A one-node SLURM with accounting, for tests.   usage: start_slurm.sh STATE_DIR FIRST_PORT    (root)
#   needs: apt-get install -y --no-install-recommends slurm-wlm munge slurmdbd mariadb-server
# Two partitions, of which `urgent` takes the nodes of `main` by requeueing its jobs; four pretend GPUs (null devices).
set -euo pipefail
D=$(realpath -m "${1:?state dir}"); P=${2:?first of four free ports}; H=$(hostname -s); CPUS=${SLURM_TEST_CPUS:-8}
die() { echo "start_slurm: $*" >&2; tail -n 20 "$D"/log/*.log >&2 || true; exit 1; }
mkdir -p "$D"/{ctld,slurmd,log,run}
chmod a+rx "$D"
install -d -o munge -g munge -m 0755 /run/munge
timeout 5 sh -c 'munge -n | unmunge' >/dev/null 2>&1 || runuser -u munge -- /usr/sbin/munged
MEM=$(slurmd -C | sed -n 's/.*RealMemory=\([0-9]*\).*/\1/p')

install -d -o mysql -g mysql "$D/db"
mariadb-install-db --user=mysql --datadir="$D/db" --skip-test-db --auth-root-authentication-method=normal >"$D/log/mariadb-install.log" 2>&1
mariadbd --no-defaults --user=mysql --datadir="$D/db" --socket="$D/db/my.sock" --pid-file="$D/db/my.pid" \
  --bind-address=127.0.0.1 --port=$((P + 3)) --skip-grant-tables --innodb-buffer-pool-size=64M \
  --innodb-lock-wait-timeout=900 >"$D/log/mariadb.log" 2>&1 &
for _ in $(seq 300); do mariadb-admin --no-defaults -S "$D/db/my.sock" ping >/dev/null 2>&1 && break; sleep 0.1; done
mariadb --no-defaults -S "$D/db/my.sock" -e 'create database if not exists slurm_acct_db' || die mariadb
cat > "$D/slurmdbd.conf" <<CONF
AuthType=auth/munge
DbdHost=$H
DbdAddr=127.0.0.1
DbdPort=$((P + 2))
SlurmUser=root
LogFile=$D/log/slurmdbd.log
PidFile=$D/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((P + 3))
StorageUser=root
StorageLoc=slurm_acct_db
CONF
chmod 600 "$D/slurmdbd.conf"
SLURM_CONF="$D/slurm.conf" /usr/sbin/slurmdbd
for _ in $(seq 300); do (exec 3<>/dev/tcp/127.0.0.1/$((P + 2))) 2>/dev/null && break; sleep 0.1; done

cat > "$D/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$H(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits cred_expire+1 s (default 120) before it may start again; 5 is the least
AuthInfo=cred_expire=5
SlurmctldPort=$P
SlurmdPort=$((P + 1))
StateSaveLocation=$D/ctld
SlurmdSpoolDir=$D/slurmd
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((P + 2))
AccountingStorageTRES=gres/gpu
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
FirstJobId=$(($(date +%s) % 60000000))
JobRequeue=1
KillWait=5
MinJobAge=3600
NodeName=$H NodeAddr=127.0.0.1 CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=$H Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=100 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=$H MaxTime=INFINITE State=UP DefMemPerCPU=100 PriorityTier=10 PreemptMode=OFF
CONF
for i in 0 1 2 3; do [ -e "$D/fakegpu$i" ] || mknod "$D/fakegpu$i" c 1 3; done
echo "NodeName=$H Name=gpu File=$D/fakegpu[0-3] Flags=nvidia_gpu_env" > "$D/gres.conf"
printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n' > "$D/cgroup.conf"
export SLURM_CONF="$D/slurm.conf"
sacctmgr -i add cluster test >/dev/null 2>&1 || true
/usr/sbin/slurmctld -c
for _ in $(seq 100); do [ -s "$D/run/slurmctld.pid" ] && break; sleep 0.1; done
kill -0 "$(cat "$D/run/slurmctld.pid")" 2>/dev/null || die "slurmctld died"
/usr/sbin/slurmd -N "$H" -c || die "slurmd died"
for _ in $(seq 150); do [ "$(timeout 5 sinfo -h -p main -o %T)" = idle ] && exit 0; sleep 0.2; done
die "the node does not become idle"
