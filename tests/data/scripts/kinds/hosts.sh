N=0
for host in 192.0.2.10 192.0.2.11; do
  FLAGS=""
  if (( N > 0 )); then FLAGS="--headless -dpr $N"; fi
  ssh -o StrictHostKeyChecking=no root@$host "export HCCL_BUFFSIZE=9; vllm serve /w/m -tp 8 -dp 2 -dpl 1 -dpa 192.0.2.10 $FLAGS" &
  N=$((N + 1))
done
wait
