"""A port that is in use, by the part of the server that asked for it: each has another option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason

_IN_USE = re.compile(r"EADDRINUSE|[Aa]ddress already in use(?!\. Retrying)")
_PORT = re.compile(
    r"port: ?(\d{2,5})\b|(?:tcp://|bind (?:to )?)\[?[\w.:*]{0,60}?\]?:(\d{2,5})\b|"
    r"\('[^'\n]{0,60}', (\d{2,5})\)|[Pp]ort (?:is )?(\d{2,5})\b"
)
_BEFORE_LINES = 14
_AFTER_LINES = 6


class _Asker(NamedTuple):
    words: str
    name: str
    option: str


# The first that the lines above the message name.
_ASKERS: tuple[_Asker, ...] = (
    _Asker(
        r"nixl",
        "NIXL's side channel",
        "`env.VLLM_NIXL_SIDE_CHANNEL_PORT`: another for each server of a node (each uses one "
        "port a rank from there)",
    ),
    _Asker(
        r"master service|[Mm]ooncake [Mm]aster|mooncake_master",
        "the Mooncake master",
        "another with --rpc_port of mooncake_master (and `master_server_address` of the servers)",
    ),
    _Asker(
        r"mooncake|bootstrap|transfer_engine",
        "the Mooncake connector",
        "`kv_port` in `args.kv-transfer-config` or `env.VLLM_MOONCAKE_BOOTSTRAP_PORT`; where the "
        "data-parallel workers of one server take it from each other, use a newer vLLM",
    ),
    _Asker(r"kv_events|event_publisher", "the publisher of KV events", "`args.kv-events-config`"),
    _Asker(
        r"kv_transfer|kv_connector|lmcache",
        "the KV connector",
        "the ports in `args.kv-transfer-config`, another for each server of a node",
    ),
    _Asker(
        r"elastic|torchrun|static_tcp_rendezvous|:29500\b|port: 29500\b",
        "the rendezvous of torch (MASTER_PORT, 29500 by default)",
        "`env.MASTER_PORT` (`--master-port` of torchrun): another for each job of a node",
    ),
    _Asker(
        r"TCPStore|init_process_group|init_distributed|DistNetworkError|server socket has failed",
        "the rendezvous of the ranks",
        "`env.VLLM_PORT`, MASTER_PORT or `args.master-port`: two servers of a node that start at "
        "the same time may choose the same port, so start them one after the other or give each "
        "its own",
    ),
    _Asker(
        r"shm_broadcast|message_queue",
        "the message queue between the workers of several nodes",
        "`env.VLLM_PORT` to the first of a free range on each node. vLLM had asked the kernel for "
        "a free port, and another process took it first: a start later may succeed",
    ),
    _Asker(
        r"coordinator|launch_core_engines|core_client|engine/utils|engine_handshake",
        "the exchange between API server and engines (handshake, RPC)",
        "`network.rpc_port` (`args.data-parallel-rpc-port`) or `env.VLLM_PORT`; of two servers on "
        "a node each needs its own",
    ),
    _Asker(r"prometheus|metrics_server", "the metrics", "the port of the metrics"),
    _Asker(
        r"gcs_server|raylet|core_worker|Ray's core",
        "a service of Ray",
        "another at `ray start` (--port of the head, --node-manager-port, --object-manager-port, "
        "a range for the workers with --min-worker-port and --max-worker-port); an older Ray ends "
        "with `ray stop`",
    ),
    _Asker(
        r"chttp2_server|server_chttp2",
        "a gRPC server (in raylet.err or gcs_server.err that of Ray)",
        "another at `ray start` (--port, --node-manager-port, --object-manager-port), after `ray "
        "stop --force`; `args.grpc-port` if it is vLLM's own gRPC server",
    ),
    _Asker(r"grpc", "the gRPC server", "`args.grpc-port`"),
)


def read_taken_ports(log: ServerLog) -> Iterator[Reading]:
    """Yield a port in use whose owner is known by the lines around."""
    for line, _ in log.errors.find(_IN_USE):
        # Reports also quote the exception first and its frames below, which are indented.
        below = takewhile(
            str.isspace, (each[:1] for each in log.cleaned[line + 1 : line + 1 + _AFTER_LINES])
        )
        end = line + 1 + sum(1 for _ in below)
        text = "\n".join(log.cleaned[max(0, line - _BEFORE_LINES) : end])
        asker = next((each for each in _ASKERS if re.search(each.words, text)), None)
        found = _PORT.search(log.cleaned[line])
        if asker is None:
            continue
        port = next((group for group in found.groups() if group), "") if found else ""
        where = f" {port}, that" if port else " that"
        search = f" | grep :{port}" if port else ""
        yield Reading(
            reason(
                "port-in-use",
                f"Another process listens on a port that the server needs:{where} of {asker.name}. "
                "It is another server of this node, or one that an earlier start has left.",
                f"Run `ss -ltnp{search}` there to find the process and stop it if it is an orphan "
                f"(`raylaunch clean`); otherwise set {asker.option}.",
                "EADDRINUSE by its place",
                "transient",
            ),
            line,
        )
