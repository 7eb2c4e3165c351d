"""Containers that get no NPU: Docker, containerd, kubelet, Ascend Docker Runtime, device plug-in.

What they write has no level and no traceback, and stands where the server's log would be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.signatures import Kind

_MAP_DEVICES = (
    "Map what exists on the host: /dev/davinciN of its NPUs (`ls /dev/davinci*`), "
    "/dev/davinci_manager, /dev/devmm_svm, /dev/hisi_hdc, and mount /usr/local/Ascend/driver, "
    "/usr/local/dcmi and /usr/local/bin/npu-smi (`container` in the recipe)."
)


@dataclass(frozen=True)
class _Refusal:
    """One way in which a container is refused; `{0}`, `{1}` are the groups of `words`."""

    id: str
    words: str
    cause: str
    remedy: str
    kind: Kind = "deterministic"


# Ordered: the more special refusal first.
_REFUSALS = (
    _Refusal(
        "container-vnpu",
        r"check aicore num failed, phy_id: ?(\d{1,4}), ?core_need: ?(\d{1,4}), ?used: ?(\d{1,4}), "
        r"?total: ?(\d{1,4})",
        "The container asks for a virtual NPU (vNPU) with {1} AI cores on NPU {0}, but other vNPUs "
        "use {2} of its {3} AI cores; vNPUs of containers that never started count too.",
        "List them with `npu-smi info -t info-vnpu -i N -c 0` and destroy those without a "
        "container (id 000000000000): `npu-smi set -t destroy-vnpu -i N -c 0 -v ID`; or ask for a "
        "smaller vNPU or another NPU.",
    ),
    _Refusal(
        "container-vnpu",
        r"(Failed to create vdev[^\n]{0,100}|\[drvCreateVdevice\][^\n]{0,100})",
        "The driver could not create a virtual NPU (vNPU) for the container: {0}.",
        "See what exists: `npu-smi info -t info-vnpu -i N -c 0`; destroy vNPUs without a container "
        "(`npu-smi set -t destroy-vnpu -i N -c 0 -v ID`), and check that this NPU and driver "
        "support vNPUs of that template.",
    ),
    _Refusal(
        "container-mount",
        r"failed to mount src: ?(/[\w./-]{1,160}?)\.?(?=failed|\s|$)",
        "Ascend Docker Runtime cannot mount {0} into the container: it is not on the host, is a "
        "link or belongs to another user, or the runtime may not write there.",
        "Check `ls -l {0}` on the host (owner root, no link, not writable for others) and SELinux; "
        "install driver and Ascend Docker Runtime of releases that belong together; or start "
        "without that runtime and map the devices yourself. " + _MAP_DEVICES,
    ),
    _Refusal(
        "container-runtime",
        r"[Uu]nknown or invalid runtime name: ?(\w{1,40})|"
        r"[Uu]nknown runtime specified (\w{1,40})|no runtime for \"(\w{1,40})\" is configured|"
        r"runtime handler \"?(\w{1,40})\"? not (?:found|supported)",
        "The container engine has no runtime `{0}`: Ascend Docker Runtime is not installed, or "
        "not registered in /etc/docker/daemon.json (containerd: config.toml).",
        "Install Ascend Docker Runtime and restart the container engine, or start without "
        "`--runtime`. " + _MAP_DEVICES,
    ),
    _Refusal(
        "container-device",
        r"(?:custom device|device|stat|open|path|lstat) \"?(/dev/(?:davinci\w{0,12}|devmm_svm|"
        r"hisi_hdc|upgrade|dvpp_cmdlist))\"?[^\n]{0,60}(?:[Nn]o such file|not found|"
        r"does not exist|not a device)",
        "The container is given the device {0}, which is not on this host: the NPU's number does "
        "not exist here, or the driver is not loaded.",
        "Compare with `ls /dev/davinci*` and `npu-smi info` on the host, and correct the numbers "
        "of the NPUs. " + _MAP_DEVICES,
    ),
    _Refusal(
        "container-npu-smi",
        r"(?:(?:exec: )?\"?npu-smi\"?:? (?:command |executable file )?not found|"
        r"npu-smi not found in [^\n]{0,200}|npu-smi\"?: No such file or directory)",
        "The program npu-smi is not found where it was called, so no NPU can be listed or set up "
        "there.",
        "Install the driver on the host, and mount /usr/local/bin/npu-smi (or "
        "/usr/local/sbin/npu-smi), /usr/local/dcmi and /usr/local/Ascend/driver into the container "
        "that calls it (also into that of a device plug-in).",
    ),
    _Refusal(
        "container-no-npus",
        r"Insufficient (huawei\.com/[\w.-]{2,60})",
        "No Kubernetes node has as many free `{0}` as the pod asks for.",
        "`kubectl describe node` shows Allocatable and what is allocated; ask for fewer, stop "
        "other pods, or see whether the Ascend device plug-in runs on the nodes and calls its "
        "resource by this name.",
        "transient",
    ),
    _Refusal(
        "container-driver-old",
        r"nvidia-container-cli: requirement error: unsatisfied condition: "
        r"((?:cuda|driver) ?>=? ?[\d.]{1,8})",
        "The image needs a newer NVIDIA driver than this host has ({0}).",
        "Update the driver of the host (`nvidia-smi` shows the highest CUDA that it supports), or "
        "use an image for an older CUDA.",
    ),
    _Refusal(
        "container-gpu-hook",
        r"nvidia-container-cli: (mount error: file creation failed: [^\n]{3,300}?: file exists)",
        "The image holds files of the NVIDIA driver itself, and the container runtime cannot put "
        "the host's in their place: {0}.",
        "Delete that library in the image (`RUN rm -f` of the libcuda.so*, libnvidia-* and "
        "nvidia-* files that the driver brings), or build it from an image without a driver; an "
        "image that was saved from a running container has them. A newer nvidia-container-toolkit "
        "helps in some cases.",
    ),
    _Refusal(
        "container-mount-path",
        r"(error mounting \"?(?!npu)[/\w.-]{2,160})",
        "The container engine cannot mount a path into the container: {0}. It is not on the host, "
        "or a folder where a file is wanted (or the other way round).",
        "Look at that path on the host, not in the container that asked for it (`ls -ld`; Docker "
        "makes an empty folder where a file is missing: delete that), and create the file. A "
        "program that starts containers from inside one (GPUStack) needs its data folder mounted "
        "from the host at the same path.",
    ),
    _Refusal(
        "container-gpu-hook",
        r"nvidia-container-cli: ((?:initialization|mount|device|detection|ldcache|container) "
        r"error: [^\n]{3,160})",
        "The NVIDIA container runtime could not give the GPUs to the container: {0}.",
        "Run `nvidia-smi` on the host: the driver must be loaded and list the GPUs that the "
        "container asks for. Then install nvidia-container-toolkit again, and restart the "
        "container engine.",
    ),
    _Refusal(
        "container-gpu-flag",
        r"could not select device driver[^\n]{0,60}capabilities: ?\[\[(gpu)\]\]",
        "The container was started with a flag for NVIDIA cards (`--gpus`, capability {0}) on a "
        "host without them.",
        "Leave out `--gpus`. " + _MAP_DEVICES,
    ),
    _Refusal(
        "container-architecture",
        r"(exec(?: /[\w./-]{1,120})?:? (?:user process caused: )?exec format error|"
        r"no matching manifest for [\w/]{3,40}|"
        r"requested image's platform \([\w/]{3,40}\) does not match the detected host platform)",
        "The image is built for another processor architecture than this host (x86_64 and "
        "aarch64): {0}.",
        "Pull or build the image for this host (`uname -m`; `docker pull --platform "
        "linux/arm64` or linux/amd64).",
    ),
    _Refusal(
        "container-image",
        r"(pull access denied for [\w./-]{1,120}|manifest for [\w./:-]{1,160} not found|"
        r"(?:manifest|tag) unknown|(?:ErrImagePull|ImagePullBackOff)\b|"
        r"Failed to pull image \"[^\"\n]{1,160}\")",
        "The container's image cannot be pulled: {0}.",
        "Check name and tag of `container.image` (the release page of vllm-ascend lists them per "
        "NPU generation), the registry's address and login, or load the image from a file.",
    ),
    _Refusal(
        "mindie-init-failed",
        r"\[MIE\w{6,12}\][^\n]{0,40}Failed to listen ([\d.]{7,15}|\[[\da-f:]{2,40}\]):(\d{1,5})",
        "MindIE's server cannot listen on {0}:{1}: the port is in use, or the address is not one "
        "of this container's own.",
        "See who has the port (`ss -ltnp | grep {1}`), and choose a free `port`; set `ipAddress` "
        "in MindIE's config.json to an address of this container (`ip addr`).",
    ),
    _Refusal(
        "mindie-init-failed",
        r"(Failed to init endpoint|failed to init LLMInferModels)",
        "MindIE's server could not start its endpoint or its models, and killed its own processes "
        "({0}): this log has no reason.",
        "Its own logs have it (`~/mindie/log/debug`, or `env.MINDIE_LOG_TO_STDOUT: 1`). Usual "
        "ones: `httpsEnabled` without certificates, a model folder or config.json with other "
        "permissions than it wants, `worldSize` and `npuDeviceIds` that do not fit, a rank table "
        "(RANK_TABLE_FILE), less than 1 GB of /dev/shm.",
    ),
    _Refusal(
        "container-hook",
        r"(error running (?:prestart|createRuntime|createContainer)?\s?hook[^\n]{0,200})",
        "A hook of the container runtime failed, which gives the container its NPUs: {0}.",
        "See /var/log/ascend-docker-runtime/hook-run.log; install Ascend Docker Runtime of a "
        "release that belongs to the driver; or start without it. " + _MAP_DEVICES,
    ),
    _Refusal(
        "container-device-plugin",
        r"Allocate failed due to ([^\n]{4,300})",
        "The kubelet got no NPU from the device plug-in: {0}.",
        "Read the log of the Ascend device plug-in on that node, and see there whether `npu-smi "
        "info` lists healthy NPUs; restart the plug-in after a change of driver.",
        "transient",
    ),
    _Refusal(
        "container-refused",
        r"((?:OCI runtime create failed|failed to create (?:shim )?task|"
        r"Error response from daemon): ?[^\n]{4,300})",
        "The container engine refused to start the container: {0}.",
        "Correct what it names in the command or the pod's description; `docker inspect` and the "
        "engine's journal (`journalctl -u docker -u containerd`) have the rest.",
    ),
    _Refusal(
        "docker-api-refused",
        r"(\d{3} (?:Client|Server) Error[^\n]{0,60}? for (?:url: )?http\+docker://[^\n]{3,200})",
        "Docker refused a request of the program that starts the containers: {0}.",
        "The last exception of the traceback has Docker's own words, or `journalctl -u docker` of "
        "that minute. GPUStack in a container gives its own mounts to the containers that it "
        "starts: mount a folder of the host at the same path (`-v "
        "/var/lib/gpustack:/var/lib/gpustack`) instead of a named volume, and set "
        "GPUSTACK_RUNTIME_DEPLOY_MIRRORED_NAME to its container's name. An API too old for the "
        "client needs a newer Docker.",
    ),
)
_PATTERNS = tuple((re.compile(each.words), each) for each in _REFUSALS)


def read_containers(log: ServerLog) -> Iterator[Reading]:
    """Yield why a container did not start or has no NPU: the most special reason of a log."""
    for pattern, refusal in _PATTERNS:
        found = next(iter(log.errors.find(pattern)), None)
        if found is None:
            continue
        line, match = found
        groups = [shorten(group, 200).rstrip(". ") for group in match.groups() if group]
        yield Reading(
            reason(
                refusal.id,
                refusal.cause.format(*groups),
                refusal.remedy.format(*groups),
                "Docker, containerd, kubelet and Ascend Docker Runtime",
                refusal.kind,
            ),
            line,
            rank=Rank.CAUSE,
            certain=refusal.id
            in ("container-architecture", "container-runtime", "container-gpu-flag"),
        )
        return
