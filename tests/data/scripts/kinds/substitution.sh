export LD_PRELOAD=$(find / -name 'x(y).so'):$LD_PRELOAD
export A_PATH=/a/$(uname -m):/b
export HCCL_BUFFSIZE=1
vllm serve /w/m --max-num-seqs $(nproc)
