"""What the codes of the Mooncake store mean (mooncake-store/include/types.h, ErrorCode)."""

from __future__ import annotations

_SPACE = (
    "Give the pool more room (`global_segment_size` per server in mooncake.json, more servers, "
    "`mooncake_master --eviction_high_watermark_ratio`), or store less."
)
_MASTER = (
    "See whether `mooncake_master` runs and its log, and that its port is reachable from this "
    "node (`master_server_address`)."
)
_TRANSFER = (
    "Check the link between the NPUs (`hccn_tool -i N -link -g`, `-ping -g address PEER`), the "
    "same CANN, driver and Mooncake build on all servers, and the peer's log and plog at that "
    "moment."
)
_LEASE = (
    "Raise the lease (`mooncake_master --default_kv_lease_ttl`, in ms) above the longest transfer, "
    "transfer fewer keys per call, and check the link between the servers."
)
RECOMPUTE = "`kv_load_failure_policy: recompute` in `args.kv-transfer-config` computes such blocks"
_ONE_RELEASE = "Install one release of Mooncake for the master and on all servers."
_DISK = (
    "Check the folder of `env.MOONCAKE_OFFLOAD_FILE_STORAGE_PATH` (`df -h`, rights) and its limits "
    "(MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES, MOONCAKE_OFFLOAD_TOTAL_KEYS_LIMIT)."
)
# Mooncake mooncake-store/include/types.h, ErrorCode.
CODES: dict[int, tuple[str, str]] = {
    -1: ("an internal error", _MASTER),
    -10: ("a buffer is too small", "Raise `local_buffer_size` in mooncake.json."),
    -101: ("no segment is available", _MASTER),
    -102: ("the segment is there already", "Wait until the old server's lease has expired."),
    -103: (
        "the master does not know this client (it was given up, or the master was restarted)",
        _MASTER,
    ),
    -200: ("the store has no space left", _SPACE),
    -400: ("the key is invalid", "Use one release of vllm-ascend on all servers."),
    -500: ("writing failed", _TRANSFER),
    -600: ("the parameters are invalid", "Compare mooncake.json and the releases of all servers."),
    -703: ("the copy is not written yet", RECOMPUTE + " again."),
    -704: ("the key is not in the store: evicted, or its server is gone", _SPACE),
    -705: ("the key is there already", "Nothing to do: another server has stored it."),
    -706: ("the key is in use", "Retry; nothing is lost."),
    -707: ("the lease of the key expired before the transfer was complete", _LEASE),
    -710: ("the copy is not there", _SPACE),
    -712: ("the copy is gone: its server was stopped or lost", _MASTER),
    -800: ("the transfer of the data failed", _TRANSFER),
    -801: ("the data is damaged: its checksum differs", _TRANSFER),
    -900: ("the call to the master failed", _MASTER),
    -901: ("the call to the master timed out", _MASTER),
    -1000: ("etcd did not answer", "Check the etcd of `metadata_server`."),
    -1010: ("the master does not take this call in its state", _MASTER),
    -300: ("the releases of master and client differ", _ONE_RELEASE),
    -601: ("this client may not do that to the key: it is another client's", _MASTER),
    -700: ("the key cannot be written in its state", RECOMPUTE + " again."),
    -701: ("the key cannot be read in its state", RECOMPUTE + " again."),
    -702: ("the copy cannot be used for this", _ONE_RELEASE),
    -711: ("the copy is there already", "Nothing to do."),
    -714: ("the copies are in use", "Retry; nothing is lost."),
    -1001: ("the key is not in etcd", "Check the etcd of `metadata_server`."),
    -1002: ("a transaction of etcd failed", "Check the etcd of `metadata_server`."),
    -1012: ("the master or this build does not support the call", _ONE_RELEASE),
    -1100: ("the file of the block is not there", _DISK),
    -1101: ("the file of the block cannot be opened", _DISK),
    -1102: ("the file of the block cannot be read", _DISK),
    -1103: ("the file of the block cannot be written", _DISK),
    -1200: ("the file that holds the block is not there", _DISK),
    -1202: ("a file would hold more keys than allowed", _DISK),
    -1203: ("the disk would hold more keys than allowed", _DISK),
    -1300: ("offloading to disk is not switched on", _DISK),
    -1601: ("the shared file system does not answer", _DISK),
    -1602: ("the quota of the shared file system is used up", _DISK),
    -1603: ("the shared file system refuses the access", _DISK),
    -1700: ("the memory of this tenant is used up", _SPACE),
    -1701: ("the master knows no quota for this tenant", _MASTER),
}

# Names of codes that an error line gives in place of the number. Those that a kind of
# mooncake_errors.py reads, and those that say less than the words beside them, are left out.
NAMES: dict[str, int] = {
    "INTERNAL_ERROR": -1,
    "INVALID_VERSION": -300,
    "INVALID_KEY": -400,
    "WRITE_FAIL": -500,
    "INVALID_PARAMS": -600,
    "ILLEGAL_CLIENT": -601,
    "INVALID_WRITE": -700,
    "INVALID_READ": -701,
    "INVALID_REPLICA": -702,
    "REPLICA_IS_NOT_READY": -703,
    "LEASE_EXPIRED": -707,
    "REPLICA_NOT_FOUND": -710,
    "REPLICA_IS_GONE": -712,
    "OBJECT_REPLICA_BUSY": -714,
    "ETCD_OPERATION_ERROR": -1000,
    "ETCD_KEY_NOT_EXIST": -1001,
    "ETCD_TRANSACTION_FAIL": -1002,
    "NOT_SUPPORTED": -1012,
    "FILE_NOT_FOUND": -1100,
    "FILE_OPEN_FAIL": -1101,
    "FILE_READ_FAIL": -1102,
    "FILE_WRITE_FAIL": -1103,
    "BUCKET_NOT_FOUND": -1200,
    "KEYS_EXCEED_BUCKET_LIMIT": -1202,
    "KEYS_ULTRA_LIMIT": -1203,
    "UNABLE_OFFLOAD": -1300,
    "DFS_SERVICE_UNAVAILABLE": -1601,
    "DFS_QUOTA_EXCEEDED": -1602,
    "DFS_PERMISSION_DENIED": -1603,
    "TENANT_QUOTA_EXCEEDED": -1700,
    "TENANT_NOT_REGISTERED": -1701,
}
