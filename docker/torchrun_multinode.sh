#!/usr/bin/env bash
# Train on several machines with torchrun: start this on each machine, with the same arguments except RANK.
#   docker/torchrun_multinode.sh NODES RANK ADDRESS [flags of train.py]
# NODES:   number of machines.
# RANK:    index of this machine, 0 to NODES - 1.
# ADDRESS: host name or IP address of machine 0, the same on all machines.
# Environment: PROCESSES_PER_NODE (default: one per GPU; set it if train.py gets --device cpu),
#   MASTER_PORT (default 29500, open on machine 0), GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME (the network
#   interface between the machines, such as eth0; needed if a machine's own name resolves to 127.x.x.x).
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

(($# >= 3)) || fail "expected NODES RANK ADDRESS and then flags of train.py, got $# arguments (--help explains them)"
nodes=$1 rank=$2 address=$3
shift 3
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "NODES should be a number from 1, got $nodes"
if ! [[ $rank =~ ^(0|[1-9][0-9]*)$ ]] || ((rank >= nodes)); then
  fail "RANK should be 0 to $((nodes - 1)), got $rank"
fi
[[ $address != -* ]] || fail "ADDRESS should be the host of machine 0, got $address"

exec "$python" -m torch.distributed.run \
  --nnodes "$nodes" --node_rank "$rank" --nproc_per_node "${PROCESSES_PER_NODE:-gpu}" \
  --master_addr "$address" --master_port "${MASTER_PORT:-29500}" \
  "$root/train.py" --amp "$@"
