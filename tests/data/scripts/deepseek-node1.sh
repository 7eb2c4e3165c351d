#!/bin/sh

# look the name up with ifconfig
nic_name="xxxx"
local_ip="xxxx"
node0_ip="xxxx" # that of the other machine

# [maybe] a faster malloc
# export LD_PRELOAD=/usr/lib/aarch64-linux-gnu/libjemalloc.so.2:$LD_PRELOAD

export HCCL_IF_IP=$local_ip
export GLOO_SOCKET_IFNAME=$nic_name
export TP_SOCKET_IFNAME=$nic_name
export HCCL_SOCKET_IFNAME=$nic_name
export OMP_PROC_BIND=false
export OMP_NUM_THREADS=1
export HCCL_BUFFSIZE=200
export VLLM_ASCEND_BALANCE_SCHEDULING=1
export LD_LIBRARY_PATH=/opt/mooncake/lib:$LD_LIBRARY_PATH

vllm serve /weights/DeepSeek-V3.1-w8a8 \
  --host 0.0.0.0 \
  --port 8004 --headless \
  -dp 4 -dpl 2 -dpr 2 \
  --data-parallel-address $node0_ip \
  -dpp 13389 \
  -tp 4 \
  -q ascend \
  --seed 1024 \
  --served-model-name deepseek_v3 \
  --enable-expert-parallel \
  --max-num-seqs 16 \
  --max-model-len 16384 \
  --no-enable-prefix-caching \
  --gpu-memory-utilization 0.92 \
  --speculative-config '{"num_speculative_tokens":3,"method":"mtp"}' \
  --compilation-config '{"cudagraph_mode": "FULL_DECODE_ONLY",
      "cudagraph_capture_sizes": [4, 8, 16]}'
