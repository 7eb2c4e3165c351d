"""What the error lines of Mooncake mean, by their words."""

from __future__ import annotations

from typing import NamedTuple


class MooncakeError(NamedTuple):
    """A kind of Mooncake failure; all `words` are in its error lines."""

    words: tuple[str, ...]
    name: str
    cause: str
    remedy: str


OF_THE_SETUP = (
    *("mooncake-rdma", "mooncake-nvlink", "mooncake-ascend-init", "mooncake-build"),
    *("mooncake-disk-path", "mooncake-npu-name", "mooncake-master-flag", "mooncake-io-uring"),
)
GUESSED = (
    *("mooncake-transfer", "mooncake-versions", "mooncake-disk", "mooncake-port"),
    *("mooncake-host-memory", "mooncake-buffer", "mooncake-segment-twice"),
)
"""Read from what is not said: no other kind fits, or calls are not understood (Mooncake#2579)."""
# The first that fits counts.
MOONCAKE = (
    MooncakeError(
        (r"nvlink|mnnvl",),
        "mooncake-nvlink",
        "Mooncake moves KV blocks over NVLink, and the memory of the peer{where} is not known or "
        "not reachable so. It takes NVLink without being asked when it finds no RDMA device.",
        "For RDMA give the container its devices (--device=/dev/infiniband; `ibv_devices` in it "
        "must list them). Otherwise choose another `protocol` (`tcp`); over NVLink both servers "
        "must share a node and its memory handles (MC_FORCE_MNNVL unset).",
    ),
    MooncakeError(
        (r"init(?:ialize )?adxl|initialize hixl|install ascend transport|initadxlengine",),
        "mooncake-ascend-init",
        "Mooncake cannot set up its Ascend transport (AdxlEngine) on this server; no other server "
        "is involved yet.",
        "Install CANN 8.3.RC1 or newer with its driver, and the Mooncake that was built for it "
        "(vllm-ascend's image has both), and source CANN's set_env.sh. Check that the NPU is "
        "visible and has an address (`hccn_tool -i N -ip -g`, /etc/hccn.conf in the container), "
        "and that the port is free; `~/ascend/log/debug/plog` of this process names the step.",
    ),
    MooncakeError(
        (r"segment_not_found|local disk segment not found|client_not_found|fail_to_remount",),
        "mooncake-forgotten",
        "The Mooncake master does not know the segment of this client{where} any more: the master "
        "was restarted, or it gave the client up because its heartbeats came late.",
        "Restart the store's clients (the servers with the pool) so that they register again; a "
        "newer Mooncake (with PR 2077) does so by itself. If the master was not restarted, raise "
        "`mooncake_master --client_ttl` (seconds; 30 or more where hosts are busy) and give its "
        "threads cores of their own.",
    ),
    MooncakeError(
        (r"storage_filepath|storage path exists but|storage root directory|fsdir|no write perm",),
        "mooncake-disk-path",
        "Mooncake cannot use the folder for blocks that it moves to disk.",
        "Make the folder on every node (`env.MOONCAKE_OFFLOAD_FILE_STORAGE_PATH`, or "
        "`ssd_offload_path` in mooncake.json): absolute, no symbolic link, writeable for the "
        "server; or switch offloading off (`enable_ssd_offload: false`).",
    ),
    MooncakeError(
        (r"insufficient disk space|under quota|meet quota|make space|preallocate|no space left",),
        "mooncake-disk-full",
        "Mooncake has no room on disk for the blocks that it moves there.",
        "Free the folder of `env.MOONCAKE_OFFLOAD_FILE_STORAGE_PATH` (`df -h`), or lower "
        "`env.MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES` below what the disk has.",
    ),
    MooncakeError(
        (r"io_uring",),
        "mooncake-io-uring",
        "Mooncake cannot use io_uring for its files: the container forbids it, locked memory is "
        "too low, or the kernel is too old.",
        "Set `env.MOONCAKE_OFFLOAD_USE_URING: 0`, or run the container with `--security-opt "
        "seccomp=unconfined` and `--ulimit memlock=-1`.",
    ),
    MooncakeError(
        (r"file_storage|storage_backend|uring_file",),
        "mooncake-disk",
        "Mooncake could not store or load blocks on disk.",
        "Check the folder of `env.MOONCAKE_OFFLOAD_FILE_STORAGE_PATH` (`df -h`, rights, `dmesg -T` "
        "for the disk) and that one server uses it; files of another release or of a broken end "
        "are removed. Without offloading (`enable_ssd_offload: false` in mooncake.json) the pool "
        "keeps to memory.",
    ),
    MooncakeError(
        (
            (
                r"unsupported_protocol|requires -duse_|not compiled in|not enabled in compilation|"
                r"nor tcp transport is compiled|while \w{3,12} not compiled|is disabled$"
            ),
        ),
        "mooncake-build",
        "This build of Mooncake lacks the protocol or backend that it is asked for.",
        "Choose what it has (`protocol` and `metadata_server` in mooncake.json: `ascend` or `tcp`, "
        "P2PHANDSHAKE or http), or install the build that has it (for NPUs that of vllm-ascend's "
        "image, for CUDA mooncake-transfer-engine, else built with the switch in the message).",
    ),
    MooncakeError(
        (
            (
                r"no valid port|find available port|find available tcp port|not valid port|"
                r"address already in use|bind (?:failed|error)"
            ),
        ),
        "mooncake-port",
        "Mooncake finds no free port on this host, or the one it is given is in use.",
        "End servers that are left over (`ss -ltnp`), give each server another port in "
        "`local_hostname` or `kv_port`, and set `env.MC_MIN_PRC_PORT` and MC_MAX_PRC_PORT (store "
        "clients: MC_STORE_CLIENT_MIN_PORT, MC_STORE_CLIENT_MAX_PORT) to a range that is free.",
    ),
    MooncakeError(
        (r"fabric mem|fabric memory",),
        "mooncake-fabric",
        "Mooncake cannot use fabric memory of the NPUs on this node.",
        "Unset `env.ASCEND_ENABLE_USE_FABRIC_MEM` (it is for A3), or install the driver (HDK) and "
        "CANN that have it; lower `global_segment_size` where the memory is short.",
    ),
    MooncakeError(
        (r"huge ?page|hugetlb|arena|mmap failed|mmap_arena|mbind failed|allocate segment",),
        "mooncake-host-memory",
        "Mooncake cannot have the host memory for its segment{big}.",
        "Lower `global_segment_size` in mooncake.json (it counts once for each rank), free host "
        "memory (`free -g`; a container's limit counts), and with MC_STORE_USE_HUGEPAGE raise "
        "`sysctl vm.nr_hugepages` or unset it.",
    ),
    MooncakeError(
        (
            (
                r"second colon missing|npu number format|invalid (?:host|device) ip format|"
                r"identifier is empty|hccn\.conf"
            ),
        ),
        "mooncake-npu-name",
        "Mooncake's NPU transport cannot read this server's name or the NPU's address.",
        "Write `local_hostname` as IP:PORT:npu_N (N is the physical number of the NPU), and give "
        "the container /etc/hccn.conf (`-v /etc/hccn.conf:/etc/hccn.conf`), which `hccn_tool -i N "
        "-ip -g` must confirm; a newer Mooncake with `use_ascend_direct` needs neither.",
    ),
    MooncakeError(
        (r"segment_overlaps|segment_already_exists",),
        "mooncake-segment-twice",
        "A segment of this name or address is at the Mooncake master already: an earlier life of "
        "this server has not expired, or two servers have the same `local_hostname` and port.",
        "Wait until the earlier one has expired (`mooncake_master --client_ttl`, 10 s) and start "
        "again, and give each server a `local_hostname` and port of its own.",
    ),
    MooncakeError(
        (r"failed to allocate (?:temp )?buffer|buffer_overflow|buffer too small|arena oom",),
        "mooncake-buffer",
        "Mooncake's local buffer is too small for the blocks that are moved at a time.",
        "Raise `local_buffer_size` in mooncake.json (for files "
        "`env.MOONCAKE_OFFLOAD_LOCAL_BUFFER_SIZE_BYTES`), send fewer requests at a time "
        "(`args.max-num-seqs`), or use a newer Mooncake, which frees such buffers sooner.",
    ),
    MooncakeError(
        (r"no_available_handle|insufficient_space|no available handle",),
        "mooncake-full",
        "The Mooncake store has no room for new blocks.",
        "Give it more (`global_segment_size` for each server, more servers), or let it evict "
        "earlier (`mooncake_master --eviction_high_watermark_ratio 0.9 --eviction_ratio 0.1`).",
    ),
    MooncakeError(
        (r"real ?client|dummy client|ipc (?:socket|request)|client not initialized",),
        "mooncake-real-client",
        "This server uses a Mooncake store client in a process of its own, and does not reach it.",
        "Start that process (`mooncake_client`, the standalone store) on this node before the "
        "server, with the same ports and user, and share /dev/shm and its socket with the "
        "container; its log names why it ended.",
    ),
    MooncakeError(
        (r"master\.cpp|master_service", r"must be|must not|invalid value|requires|not supported"),
        "mooncake-master-flag",
        "The Mooncake master refuses one of its settings.",
        "Correct the flag that the message names (`mooncake_master --help`) and start it again.",
    ),
    MooncakeError(
        (r"checksum_mismatch|checksum mismatch",),
        "mooncake-checksum",
        "Blocks came out of the Mooncake store other than they were put in.",
        "Install one release of Mooncake on all nodes, clear the store (restart the master and "
        "the servers), and check the cards and links of the server that holds them.",
    ),
    MooncakeError(
        (r"retry counter exceeded|remote (?:access|operation) error|local protection|flushed",),
        "mooncake-rdma-link",
        "An RDMA transfer of Mooncake{between} failed{why}: the two cards do not reach each other, "
        "a port is down, or the peer is gone.",
        "Check both cards with `ibv_devinfo` and `ib_write_bw` between them (same network, GID "
        "index, MTU), name the right card in `device_name`, or choose another `protocol` (`tcp`, "
        "`ascend`); read the peer's log.",
    ),
    MooncakeError(
        (r"invalid rpc arg|function not registered|unknown rpc|rpc_?version|protocol version",),
        "mooncake-versions",
        "The Mooncake master{where} does not understand the calls of this client: master and "
        "client are of different releases of Mooncake, whose messages differ.",
        "Install one release of Mooncake for the master and all clients (`pip list | grep -i "
        "mooncake` on each node and in each image), and restart the master, then the servers.",
    ),
    MooncakeError(
        (
            r"failed to (?:\w{3,6} )?(?:put|get|query|exist|remove)|(?:put|get) operation",
            r"rpc|timed out|refused|connect|retries",
            # A call may also fail because the metadata server does not answer.
            r"(?s)^(?!.*(?:metadata|etcd))",
        ),
        "mooncake-master",
        "A call of the Mooncake store to its master{where} failed: the master has ended or was "
        "restarted, is not reachable, or is overloaded.",
        "Check that `mooncake_master` runs, and that its port is reachable from this node (`nc -vz "
        "MASTER 50051`; `master_server_address` in mooncake.json: an address that all nodes reach, "
        "not 0.0.0.0 or localhost). A client whose connection was closed needs a restart of its "
        "server.",
    ),
    MooncakeError(
        (
            r"master_client|mount[_ ]?segment|master|create client",
            r"rpc|timed out|refused|connect|retries",
        ),
        "mooncake-master",
        "The Mooncake store cannot register its segment{big} with the Mooncake master{where}: the "
        "call to the master failed (master not running, not reachable, or too slow for a segment "
        "of this size).",
        "Check that `mooncake_master` runs and that its port is reachable from this node (`nc -vz "
        "MASTER 50051`; `master_server_address` in mooncake.json); use a smaller "
        "`global_segment_size`.",
    ),
    MooncakeError(
        (r"metadata",),
        "mooncake-metadata",
        "Mooncake's metadata of a peer cannot be read{where}: the metadata server is not "
        "reachable, or the peer has not registered itself (not started, or gone).",
        "Check `metadata_server` in the configuration and that the peer server runs; with "
        "P2PHANDSHAKE check that the peer's address is right and its port open; read the peer's "
        "log.",
    ),
    MooncakeError(
        (r"register (?:local )?mem|regmem|registermem|ibv_reg_mr|memory region",),
        "mooncake-memory",
        "Mooncake cannot register memory with the network card or NPU.",
        "Raise `ulimit -l` (unlimited), use a Mooncake build that fits CANN and driver, and lower "
        "the segment size or the number of registered blocks.",
    ),
    MooncakeError(
        (r"peermem|dma.?buf",),
        "mooncake-rdma",
        "Mooncake cannot use an RDMA card for the memory of the devices{why}: the driver's module "
        "for that is not loaded, or the card does not open.",
        "Load it on the node (`modprobe nvidia_peermem`), or choose another `protocol` (`tcp`; "
        "`ascend` on NPUs). If the card does not open: `ibv_devinfo` must show the port as active, "
        "`show_gids` the index (`env.MC_GID_INDEX`).",
    ),
    MooncakeError(
        (r"no (?:rdma )?device|no available rnic|topology|ibv_open|rdma_context|\bgid\b",),
        "mooncake-rdma",
        "Mooncake finds no usable RDMA device{why}.",
        "Map /dev/infiniband into the container, check `ibv_devices` (`ibv_devinfo`: the port must "
        "be active; `show_gids`: the index, `env.MC_GID_INDEX`), or choose another protocol "
        "(`tcp`, `ascend`).",
    ),
    MooncakeError(
        (r"aclrtgetdevice failed|error code is context|context is a null|ctx is null",),
        "mooncake-transfer",
        "A thread of Mooncake has no NPU context: the NPU was not set in the thread or process "
        "that transfers (a standalone store client with several NPUs, or a process without "
        "set_device).",
        "Use a newer release of Mooncake, the same on all servers, that sets the NPU in its worker "
        "threads; until then one NPU per store client, or the pool inside of the server "
        "(`global_segment_size` in mooncake.json) in place of a standalone client.",
    ),
    MooncakeError(
        (),
        "mooncake-transfer",
        "Mooncake cannot transfer KV blocks to its peer{where}: the connection or a transfer "
        "failed.",
        "Check that the peer server runs and is reachable (`hccn_tool -i N -ping -g address PEER` "
        "between the NPUs; the same CANN, driver and Mooncake build on both sides, "
        "`use_ascend_direct`; ASCEND_CONNECT_TIMEOUT), and read the peer's log.",
    ),
)
