docker run --rm --net=host -e HCCL_BUFFSIZE=300 --env=OMP_NUM_THREADS=2 \
  example.org/a/vllm-ascend:v1 bash -c "export TASK_QUEUE_ENABLE=1; vllm serve /w/m -tp 8"
