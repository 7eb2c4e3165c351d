"""What the error lines of Mooncake mean, by their words."""

from __future__ import annotations

from typing import NamedTuple


class MooncakeError(NamedTuple):
    """A kind of Mooncake failure; all `words` are in its error lines."""

    words: tuple[str, ...]
    name: str
    cause: str
    remedy: str


OF_THE_SETUP = ("mooncake-rdma", "mooncake-nvlink", "mooncake-ascend-init")
GUESSED = ("mooncake-transfer", "mooncake-versions")
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
