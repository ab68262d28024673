#!/usr/bin/env bash
# Runs a command beside a Slurm cluster of its own on this machine.
#
#   mini_slurm.sh [-n NODES] [-c CPUS] [-g GPUS] COMMAND [ARGUMENT...]
#
# slurmctld and one slurmd per virtual node (node1, node2, ...) live in namespaces: own processes, own network, own
# /etc/hosts; a node has a host name and processes of its own. When COMMAND ends, or this script is killed, the kernel
# ends all of it. GPUs are links to /dev/null. The partitions are batch (the default), low and high; jobs in low give
# way to those in high.
#
# COMMAND sees SLURM_CONF, MINI_SLURM (this script) and MINI_SLURM_DIR (log/, jobcomp.txt), and may say
#
#   "$MINI_SLURM" crash NODE     the node loses power: daemon, job steps, everything
#   "$MINI_SLURM" boot NODE      it comes back
#
# The exit status is COMMAND's, or 125 when the cluster did not come up. Needs root or user namespaces.
set -u
PATH=$PATH:/usr/sbin:/sbin
self=$(readlink -f "$0")
network=10.213.0

die() {
    printf 'mini_slurm: %s\n' "$*" >&2
    exit 125
}

until_true() { # SECONDS COMMAND...
    local turns=$(($1 * 20))
    shift
    until "$@"; do
        [ $((turns -= 1)) -gt 0 ] || return 1
        sleep 0.05
    done
}

boot() { # NODE: slurmd under an init of its own, which takes everything along when it is killed
    unshare --uts --pid --fork --kill-child=KILL --mount-proc "$self" init "$1" \
        </dev/null >>"$MINI_SLURM_DIR/log/$1.out" 2>&1 &
    echo $! >"$MINI_SLURM_DIR/run/$1"
    disown
}

init() { # NODE: process 1 of a node
    hostname "$1"
    slurmd -D -N "$1" &
    while :; do wait; sleep 1; done
}

crash() { # NODE
    local process
    process=$(cat "$MINI_SLURM_DIR/run/$1") || exit 1
    kill -KILL "$process"
    until_true 5 eval "! kill -0 $process 2>/dev/null"
}

configure() { # the cluster's folder, its slurm.conf and gres.conf, names and addresses
    local dir=$MINI_SLURM_DIR node gpu
    chmod 755 "$dir" # munge's socket must be within everyone's reach
    mkdir "$dir"/{munge,state,log,run,dev}
    chmod 711 "$dir/munge"
    for ((gpu = 0; gpu < gpus; gpu++)); do ln -s /dev/null "$dir/dev/gpu$gpu"; done
    ip link set lo up
    # Slurm looks names up in a way that fails where 127.0.0.1 is the only address.
    local card=eth0
    { ip link add eth0 type dummy && ip link set eth0 up; } 2>/dev/null || card=lo
    ip addr add $network.250/24 dev $card || die "cannot add an address (Debian package iproute2)"
    printf '127.0.0.1 localhost\n%s.250 login\n' $network >"$dir/hosts"
    cat >"$SLURM_CONF" <<CONF
ClusterName=mini
SlurmctldHost=login($network.250)
SlurmctldPort=6800
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/%n.slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MessageTimeout=5
TCPTimeout=2
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CONF
    for ((node = 1; node <= nodes; node++)); do
        mkdir "$dir/spool-node$node"
        echo "$network.$node node$node" >>"$dir/hosts"
        ip addr add "$network.$node/24" dev $card
        echo "NodeName=node$node NodeHostname=node$node NodeAddr=$network.$node Port=$((6800 + node)) CPUs=$cpus" \
            "RealMemory=4000 Gres=gpu:v100:$gpus State=UNKNOWN" >>"$SLURM_CONF"
        for ((gpu = 0; gpu < gpus; gpu++)); do
            echo "NodeName=node$node Name=gpu Type=v100 File=$dir/dev/gpu$gpu" >>"$dir/gres.conf"
        done
    done
    cat >>"$SLURM_CONF" <<CONF
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 GraceTime=10 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
    hostname login
    mount --bind "$dir/hosts" /etc/hosts || die "cannot hide /etc/hosts"
}

start_daemons() {
    local dir=$MINI_SLURM_DIR node careless=
    # In a user namespace / and /tmp belong to nobody, which munged finds insecure.
    [ "$(stat -c %u /)" = 0 ] || careless=--force
    head -c 1024 /dev/urandom >"$dir/munge/key"
    chmod 600 "$dir/munge/key"
    munged --foreground ${careless:+"$careless"} --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
        --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" --num-threads=2 \
        >"$dir/log/munged.out" 2>&1 &
    until_true 10 test -S "$dir/munge/socket" || give_up munged
    slurmctld -D >"$dir/log/slurmctld.out" 2>&1 &
    # A slurmd that comes before slurmctld listens waits a whole second.
    until_true 20 eval "(exec 3<>/dev/tcp/$network.250/6800) 2>/dev/null" || give_up slurmctld
    for ((node = 1; node <= nodes; node++)); do boot "node$node"; done
    until_true 30 all_idle || give_up slurmd
}

all_idle() { # sinfo prints a node once per partition
    [ "$(sinfo -h -N -o '%N %t' 2>/dev/null | sort -u | grep -c ' idle$')" = "$nodes" ]
}

give_up() { # DAEMON: with the daemons' own words
    grep -hE 'error|fatal' "$MINI_SLURM_DIR"/log/*.out | grep -v -e pmix -e MPI: -e 'state file' | tail -n 20 >&2
    die "$1 did not come up"
}

enter_namespaces() { # ARGUMENT...: runs this script again as process 1 of namespaces of its own
    local how=(--mount --uts --pid --net --fork --kill-child=KILL --mount-proc)
    # As itself, not as root: slurmctld as root calls setgroups, which is refused there.
    [ "$(id -u)" = 0 ] || how+=(--user --map-current-user --keep-caps)
    unshare "${how[@]}" true || die "this kernel or container allows no namespaces; run it as root"
    MINI_SLURM_DIR=$(mktemp -d "${TMPDIR:-/tmp}/mini-slurm.XXXXXX") || die "no temporary folder"
    trap 'rm -rf "$MINI_SLURM_DIR"' EXIT
    export MINI_SLURM_DIR MINI_SLURM=$self SLURM_CONF=$MINI_SLURM_DIR/slurm.conf
    # setpriv ties the namespaces to this process, even when it is killed with SIGKILL.
    MINI_SLURM_INSIDE=1 setpriv --pdeathsig KILL unshare "${how[@]}" "$self" "$@" <&0 &
    local inside=$!
    trap '{ kill -KILL $inside; wait $inside; } 2>/dev/null; exit 143' TERM INT HUP
    wait $inside
    exit
}

case ${1-} in
boot | crash | init)
    "$@"
    exit
    ;;
esac
[ -n "${MINI_SLURM_INSIDE:-}" ] || enter_namespaces "$@"
unset MINI_SLURM_INSIDE
nodes=2 cpus=4 gpus=4
while getopts n:c:g: option; do
    case $option in
    n) nodes=$OPTARG ;;
    c) cpus=$OPTARG ;;
    g) gpus=$OPTARG ;;
    *) die "see the top of $self" ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || die "no command given"
configure
start_daemons
"$@" # the kernel ends everything else here with this script, which is process 1
