#!/bin/bash
# second machine: only computes
export HCCL_IF_IP={SecondAddress}
export GLOO_SOCKET_IFNAME="{Card}"
export TP_SOCKET_IFNAME="{Card}"
export HCCL_SOCKET_IFNAME="{Card}"
export HCCL_BUFFSIZE=1024
export ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
export HCCL_OP_EXPANSION_MODE="AIV"
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True
export OMP_PROC_BIND=false
export OMP_NUM_THREADS=1
export VLLM_ASCEND_ENABLE_FLASHCOMM1=1
export HCCL_INTRA_PCIE_ENABLE=1
export HCCL_INTRA_ROCE_ENABLE=0
# only for traces
export VLLM_TORCH_PROFILER_WITH_STACK=0
export VLLM_TORCH_PROFILER_DIR="{trace_folder}"

vllm serve /data/models/MiniMax-M2.5/ \
--served-model-name "mm25" \
--host {SecondAddress} \
--port 20004 \
--headless \
--tensor-parallel-size 8 \
--data-parallel-size 2 \
--data-parallel-size-local 1 \
--data-parallel-start-rank 1 \
--data-parallel-address {FirstAddress} \
--data-parallel-rpc-port 2347 \
--max-num-seqs 96 \
--max-num-batched-tokens 32768 \
--gpu-memory-utilization 0.92 \
--enable-expert-parallel \
--trust-remote-code \
--enable-auto-tool-choice \
--tool-call-parser minimax_m2 \
--reasoning-parser minimax_m2_append_think \
--compilation-config '{"cudagraph_mode": "FULL_DECODE_ONLY"}' \
--mm_processor_cache_type="shm" \
--async-scheduling \
--additional-config '{"enable_cpu_binding":true}' \
