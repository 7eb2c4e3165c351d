#!/usr/bin/env bash
# shellcheck disable=SC1003,SC1110,SC1111,SC1112,SC2016,SC2088
# Deployment a3-single, recipe a3-single: server 0 of 1.
# Role: the primary, with the API; data-parallel rank(s) 0, 1, 2, 3 of 4; node 192.0.2.10 (enp67s0f0np0).
# Run on that node, where `vllm` is on the PATH: bash server-0-192.0.2.10.sh
# Ready when http://192.0.2.10:8000/v1/models answers.
# This script does not change host settings: `raylaunch tune` shows and sets them.
# `raylaunch start` adds a gateway: http://192.0.2.10:8001/v1 (on 192.0.2.10; least-loaded).
# These scripts start none: clients use the server's own address.

set -euo pipefail

unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY  # raylaunch: traffic between the servers must not go through a proxy
unset VLLM_PORT RANK_TABLE_FILE  # raylaunch: an inherited value breaks the rendezvous

export ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15  # recipe: hardware.npus_per_server
export HCCL_OP_EXPANSION_MODE=AIV  # recipe a3-single.yaml:38
export HCCL_BUFFSIZE=1024  # recipe a3-single.yaml:39
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True  # recipe a3-single.yaml:40
export OMP_NUM_THREADS=1  # recipe a3-single.yaml:41
export TASK_QUEUE_ENABLE=1  # recipe a3-single.yaml:42
export VLLM_ASCEND_ENABLE_FLASHCOMM1=1  # recipe a3-single.yaml:43
export VLLM_ASCEND_BALANCE_SCHEDULING=1  # recipe a3-single.yaml:44
export VLLM_ENGINE_READY_TIMEOUT_S=3600  # timeouts.start: with several API servers vLLM's 600 s would cover the loading of the weights too
export LD_PRELOAD=/usr/lib/aarch64-linux-gnu/libjemalloc.so.2  # recipe a3-single.yaml:63

exec vllm serve \
  /home/cache/MiniMax-M2.5-w8a8-QuaRot \
  --served-model-name MiniMax-M2.5 \
  --host 0.0.0.0 \
  --port 8000 \
  --tensor-parallel-size 4 \
  --data-parallel-size 4 \
  --enable-expert-parallel \
  --api-server-count 4 \
  --trust-remote-code \
  --quantization ascend \
  --async-scheduling \
  --compilation-config '{"cudagraph_mode": "FULL_DECODE_ONLY"}' \
  --additional-config '{"enable_cpu_binding": true}' \
  --max-num-seqs 48 \
  --max-model-len 40690 \
  --max-num-batched-tokens 16384 \
  --gpu-memory-utilization 0.85 \
  --speculative-config '{"method": "eagle3", "model": "/home/cache/Eagle3/", "num_speculative_tokens": 3, "enforce_eager": true}'
