#!/usr/bin/env bash
# Deployment a2-dual, recipe a2-dual: the container of node 192.0.2.10.
# Run this on the node, beside its server script(s).
# Unlike the guide it names neither -e ASCEND_RT_VISIBLE_DEVICES nor PYTORCH_NPU_ALLOC_CONF:
# each server script sets its own (Ray would shuffle the first).
# Then, in the background container:
#   docker cp server-0-192.0.2.10.sh minimax2_5:/root/server-0-192.0.2.10.sh
#   docker exec -it minimax2_5 bash -ic 'bash /root/server-0-192.0.2.10.sh'
set -euo pipefail

docker run \
  -itd \
  -u 0 \
  --ipc=host \
  --privileged \
  -e VLLM_USE_MODELSCOPE=True \
  --name minimax2_5 \
  --net=host \
  --shm-size=1g \
  --device /dev/davinci_manager \
  --device /dev/devmm_svm \
  --device /dev/hisi_hdc \
  -v /usr/local/dcmi:/usr/local/dcmi \
  -v /usr/local/Ascend/driver/tools/hccn_tool:/usr/local/Ascend/driver/tools/hccn_tool \
  -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi \
  -v /usr/local/Ascend/driver/lib64/:/usr/local/Ascend/driver/lib64/ \
  -v /usr/local/Ascend/driver/version.info:/usr/local/Ascend/driver/version.info \
  -v /etc/ascend_install.info:/etc/ascend_install.info \
  -v /home/:/home/ \
  -v /opt/data/verification/:/opt/data/verification/ \
  -v /root/.cache:/root/.cache \
  -v /mnt/performance/:/mnt/performance/ \
  m.daocloud.io/quay.io/ascend/vllm-ascend:v0.23.0.post1 bash
