docker exec -d -e OMP_NUM_THREADS=3 box bash -lc 'export HCCL_BUFFSIZE=2 && vllm serve /w/m -tp 4'
