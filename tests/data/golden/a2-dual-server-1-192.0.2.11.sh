#!/usr/bin/env bash
# shellcheck disable=SC1003,SC1110,SC1111,SC1112,SC2016,SC2088
# Deployment a2-dual, recipe a2-dual: server 1 of 2.
# Role: headless; data-parallel rank(s) 1 of 2; node 192.0.2.11 (enp67s0f0np0).
# Run on that node, where `vllm` is on the PATH: bash server-1-192.0.2.11.sh
# Order: any, but start all servers within 5 minutes: without the primary a headless one gives up then.
# If one exits, stop and start all: a server cannot rejoin a group.
# Ready when http://192.0.2.10:20004/v1/models answers.
# This script does not change host settings: `raylaunch tune` shows and sets them.
# `raylaunch start` adds a gateway: http://192.0.2.10:8000/v1 (on 192.0.2.10; least-loaded).
# These scripts start none: clients use the server's own address.

set -euo pipefail

unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY  # raylaunch: traffic between the servers must not go through a proxy
unset VLLM_PORT RANK_TABLE_FILE  # raylaunch: an inherited value breaks the rendezvous

export HCCL_IF_IP=192.0.2.11  # node: address
export HCCL_SOCKET_IFNAME='=enp67s0f0np0'  # node: interface (HCCL reads a bare name as a prefix, `=` as exact)
export VLLM_HOST_IP=192.0.2.11  # node: address (vLLM would take the route to the internet instead)
export GLOO_SOCKET_IFNAME=enp67s0f0np0  # node: interface (Gloo reads an exact name)
export TP_SOCKET_IFNAME=enp67s0f0np0  # node: interface
export ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7  # recipe: hardware.npus_per_server
export HCCL_BUFFSIZE=1024  # recipe a2-dual.yaml:42
export HCCL_OP_EXPANSION_MODE=AIV  # recipe a2-dual.yaml:43
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True  # recipe a2-dual.yaml:44
export OMP_PROC_BIND=false  # recipe a2-dual.yaml:45
export OMP_NUM_THREADS=1  # recipe a2-dual.yaml:46
export VLLM_ASCEND_ENABLE_FLASHCOMM1=1  # recipe a2-dual.yaml:47
export HCCL_INTRA_PCIE_ENABLE=1  # recipe a2-dual.yaml:48
export HCCL_INTRA_ROCE_ENABLE=0  # recipe a2-dual.yaml:49

exec vllm serve \
  /opt/data/verification/models/MiniMax-M2.5/ \
  --served-model-name minimax25 \
  --host 192.0.2.11 \
  --port 20004 \
  --headless \
  --tensor-parallel-size 8 \
  --data-parallel-size 2 \
  --enable-expert-parallel \
  --data-parallel-size-local 1 \
  --data-parallel-address 192.0.2.10 \
  --data-parallel-rpc-port 2347 \
  --data-parallel-start-rank 1 \
  --max-num-seqs 128 \
  --max-num-batched-tokens 65536 \
  --gpu-memory-utilization 0.92 \
  --trust-remote-code \
  --compilation-config '{"cudagraph_mode": "FULL_DECODE_ONLY"}' \
  --mm-processor-cache-type shm \
  --async-scheduling \
  --additional-config '{"enable_cpu_binding": true}' \
  --enable-auto-tool-choice \
  --tool-call-parser minimax_m2 \
  --reasoning-parser minimax_m2_append_think
