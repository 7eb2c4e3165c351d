export LOCAL_IP=<NODE_IP>
export NIC_NAME=<NIC>
export DP_SIZE=2
export TP_SIZE=16
export HCCL_IF_IP=$LOCAL_IP
export GLOO_SOCKET_IFNAME=$NIC_NAME
export HCCL_SOCKET_IFNAME=$NIC_NAME
export HCCL_BUFFSIZE=200
export VLLM_API_KEY=sk-not-to-be-seen
ARGS="--seed 1024 --max-num-seqs 16"
vllm serve /weights/GLM-5.1-w8a8 --host <NODE_IP> --port 8080 --served-model-name glm \
  --tensor-parallel-size $TP_SIZE --data-parallel-size ${DP_SIZE} --data-parallel-size-local 1 \
  --data-parallel-address $LOCAL_IP --data-parallel-rpc-port 13389 --enable-expert-parallel --api-server-count 2 \
  --enable-chunked-prefill $ARGS --max-model-len ${LENGTH:-133120} \
  --enable-auto-tool-choice --tool-call-parser glm47 2>&1 | tee server.log
