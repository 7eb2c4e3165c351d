#!/usr/bin/env bash
# Deployment a3-single, recipe a3-single: the container of node 192.0.2.10.
# Run this on the node, beside its server script(s).
# Unlike the guide it names neither -e ASCEND_RT_VISIBLE_DEVICES nor PYTORCH_NPU_ALLOC_CONF:
# each server script sets its own (Ray would shuffle the first).
# Then, from a second shell on the node:
#   docker cp server-0-192.0.2.10.sh vllm-ascend:/root/server-0-192.0.2.10.sh
#   docker exec -it vllm-ascend bash -ic 'bash /root/server-0-192.0.2.10.sh'
set -euo pipefail

docker run \
  --rm \
  -it \
  --name vllm-ascend \
  --net=host \
  --shm-size=1g \
  --device /dev/davinci0 \
  --device /dev/davinci1 \
  --device /dev/davinci2 \
  --device /dev/davinci3 \
  --device /dev/davinci4 \
  --device /dev/davinci5 \
  --device /dev/davinci6 \
  --device /dev/davinci7 \
  --device /dev/davinci8 \
  --device /dev/davinci9 \
  --device /dev/davinci10 \
  --device /dev/davinci11 \
  --device /dev/davinci12 \
  --device /dev/davinci13 \
  --device /dev/davinci14 \
  --device /dev/davinci15 \
  --device /dev/davinci_manager \
  --device /dev/devmm_svm \
  --device /dev/hisi_hdc \
  -v /usr/local/dcmi:/usr/local/dcmi \
  -v /usr/local/Ascend/driver/tools/hccn_tool:/usr/local/Ascend/driver/tools/hccn_tool \
  -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi \
  -v /usr/local/Ascend/driver/lib64/:/usr/local/Ascend/driver/lib64/ \
  -v /usr/local/Ascend/driver/version.info:/usr/local/Ascend/driver/version.info \
  -v /etc/ascend_install.info:/etc/ascend_install.info \
  -v /mnt/sfs_turbo/.cache:/home/cache \
  m.daocloud.io/quay.io/ascend/vllm-ascend:v0.23.0.post1-a3 bash
