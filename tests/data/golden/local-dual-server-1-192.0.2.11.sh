#!/usr/bin/env bash
# shellcheck disable=SC1003,SC1110,SC1111,SC1112,SC2016,SC2088
# Deployment local-dual, recipe local-dual: server 1 of 2.
# Role: headless; data-parallel rank(s) 1 of 2; node 192.0.2.11 (enp67s0f0np0).
# Run on that node, where `vllm` is on the PATH: bash server-1-192.0.2.11.sh
# Order: any, but start all servers within 5 minutes: without the primary a headless one gives up then.
# If one exits, stop and start all: a server cannot rejoin a group.
# Ready when http://192.0.2.10:20004/v1/models answers.
# The generated model must exist: $HOME/.raylaunch/models/tiny-qwen3 (`raylaunch start` makes it).
# This script does not change host settings: `raylaunch tune` shows and sets them.
# `raylaunch start` adds a gateway: http://192.0.2.10:8000/v1 (on 192.0.2.10; least-loaded).
# These scripts start none: clients use the server's own address.

set -euo pipefail

unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY  # raylaunch: traffic between the servers must not go through a proxy
unset VLLM_PORT RANK_TABLE_FILE  # raylaunch: an inherited value breaks the rendezvous

export VLLM_HOST_IP=192.0.2.11  # node: address (vLLM would take the route to the internet instead)
export GLOO_SOCKET_IFNAME=enp67s0f0np0  # node: interface (Gloo reads an exact name)
export TP_SOCKET_IFNAME=enp67s0f0np0  # node: interface
export VLLM_CPU_KVCACHE_SPACE=1  # recipe local-dual.yaml:34
export VLLM_CPU_OMP_THREADS_BIND=nobind  # recipe local-dual.yaml:35
export OMP_NUM_THREADS=1  # recipe local-dual.yaml:36
export HF_HUB_OFFLINE=1  # recipe local-dual.yaml:37
export TRANSFORMERS_OFFLINE=1  # recipe local-dual.yaml:38
export VLLM_NO_USAGE_STATS=1  # recipe local-dual.yaml:39

exec vllm serve \
  "$HOME"/.raylaunch/models/tiny-qwen3 \
  --served-model-name tiny \
  --host 192.0.2.11 \
  --port 20004 \
  --headless \
  --tensor-parallel-size 1 \
  --data-parallel-size 2 \
  --data-parallel-size-local 1 \
  --data-parallel-address 192.0.2.10 \
  --data-parallel-rpc-port 2347 \
  --data-parallel-start-rank 1 \
  --enforce-eager \
  --max-model-len 1024 \
  --max-num-seqs 8 \
  --dtype float32
