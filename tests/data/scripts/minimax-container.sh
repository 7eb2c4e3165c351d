#!/bin/sh
BOX=mm
CARDS="0,1,2,3,4,5,6,7"
PICTURE=registry.example:5000/ascend/vllm-ascend:v0.23.0.post1

docker run -itd -u 0 --ipc=host --privileged \
-e VLLM_USE_MODELSCOPE=True \
-e ASCEND_RT_VISIBLE_DEVICES=$CARDS \
--name $BOX \
--net=host \
--device /dev/davinci_manager \
--device=/dev/devmm_svm \
--shm-size=1g \
-v /usr/local/dcmi:/usr/local/dcmi \
-v /data/:/data/ \
--cap-add SYS_PTRACE \
-it $PICTURE bash
