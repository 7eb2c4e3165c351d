"""Writes and removes the files that HAProxy reads."""

from __future__ import annotations

from pathlib import Path

from raylaunch.gateway.gateway_messages import GatewayOptions
from raylaunch.gateway.haproxy_config import HaproxyFiles, haproxy_config, keys_map


def is_current(files: HaproxyFiles, options: GatewayOptions, listener: int) -> bool:
    """Return whether a HAProxy that reads the configuration there follows these options.

    API keys are left out: they are replaced in a HAProxy that runs.
    """
    return _read(files.config) == _config_text(files, options, listener)


def write_files(files: HaproxyFiles, options: GatewayOptions, listener: int) -> None:
    """Write all files for these options; `listener` is the inherited listening socket."""
    files.keys.write_text(keys_map(options.key_hashes))
    files.config.write_text(_config_text(files, options, listener))
    links = ((files.certificate, options.certificate), (files.certificate_key, options.key))
    for link, target in links:
        link.unlink(missing_ok=True)
        if target:
            link.symlink_to(target)


def has_keys(files: HaproxyFiles, options: GatewayOptions) -> bool:
    """Return whether the file of accepted API keys has exactly those of the options."""
    return _read(files.keys) == keys_map(options.key_hashes)


def remove_files(files: HaproxyFiles) -> None:
    """Remove what only a gateway that runs needs, and what is of its keys."""
    sockets = (files.admin, files.relay)
    for file in (*sockets, files.keys, files.certificate, files.certificate_key):
        file.unlink(missing_ok=True)


def _config_text(files: HaproxyFiles, options: GatewayOptions, listener: int) -> str:
    # A renewed certificate has the same name. With its time in the text, the text differs.
    times = " ".join(map(str, _certificate_times(options)))
    return f"# certificate: {times}\n{haproxy_config(options, files, listener)}"


def _certificate_times(options: GatewayOptions) -> list[int]:
    files = [Path(name) for name in (options.certificate, options.key) if name]
    return [file.stat().st_mtime_ns for file in files if file.exists()]


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
