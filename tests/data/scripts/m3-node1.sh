  local_ip="${SECOND_IP}"
  node0_ip="${FIRST_IP}"

  export HCCL_IF_IP=$local_ip
  export IFNAME="${CARD}"
  export GLOO_SOCKET_IFNAME="$IFNAME"
  export TP_SOCKET_IFNAME="$IFNAME"
  export HCCL_SOCKET_IFNAME="$IFNAME"
  export ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
  export VLLM_ENGINE_READY_TIMEOUT_S=3600
  export HCCL_CONNECT_TIMEOUT=7200
  export PYTORCH_NPU_ALLOC_CONF="expandable_segments:True"

  nohup vllm serve ${WEIGHTS} \
    --host 0.0.0.0 \
    --served-model-name m3 \
    --headless \
    --max-model-len 40960 \
    --tensor-parallel-size 8 \
    --enable-expert-parallel \
    --max-num-seqs 8 \
    --data-parallel-size 2 \
    --data-parallel-size-local 1 \
    --data-parallel-start-rank 1 \
    --data-parallel-address $node0_ip \
    --distributed_executor_backend "mp" \
    --gpu-memory-utilization 0.94 \
    --reasoning-parser minimax_m3 \
    --limit-mm-per-prompt '{"image":1,"video":0}' \
    --additional-config '{"enable_cpu_binding":true, "ascend_compilation_config":{"fuse_norm_quant":false}}' \
    --port 11223 > ${LOG} 2>&1 &
