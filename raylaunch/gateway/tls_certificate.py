"""Reads a certificate as a client would: by a handshake in memory, with the standard library."""

from __future__ import annotations

import ssl
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.plan.facts import CertificateFacts, CertificateProblem

EXPIRED = 10
NOT_YET_VALID = 9
"""X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CERT_NOT_YET_VALID (openssl, x509_vfy.h)."""


def read_certificate(certificate: Path, key: Path) -> CertificateFacts:
    """Return whether HAProxy could serve with these files now, and until when."""
    for file in (certificate, key):
        if not file.is_file():
            return CertificateFacts("missing", f"{file} does not exist")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A passphrase would be asked for on the terminal.
        server.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        return CertificateFacts("key-mismatch" if mismatch else "unreadable", str(error))
    except (OSError, ValueError) as error:
        return CertificateFacts("unreadable", str(error))
    return _shake_hands(server, certificate)


def require_certificate(certificate: str, key: str) -> None:
    """Accept certificate and key, or none of them.

    Raises:
        NodeError: HAProxy could not serve with them now.
    """
    if not certificate:
        return
    found = read_certificate(Path(certificate), Path(key))
    if found.problem is not None:
        raise NodeError(
            f"the gateway's certificate {certificate} cannot be used: {found.problem}",
            why=found.detail,
            todo="correct gateway.tls.certificate and gateway.tls.key",
        )


def _shake_hands(server: ssl.SSLContext, certificate: Path) -> CertificateFacts:
    """Have a client that trusts just this certificate verify it."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    try:
        for _round in range(4):
            for end in ends:
                _step(end)
    except ssl.SSLCertVerificationError as error:
        problems: dict[int, CertificateProblem] = {
            EXPIRED: "expired",
            NOT_YET_VALID: "not-yet-valid",
        }
        return CertificateFacts(problems.get(error.verify_code, "unreadable"), error.verify_message)
    found = ends[0].getpeercert() or {}
    expires = found.get("notAfter")
    return CertificateFacts(
        expires=ssl.cert_time_to_seconds(expires) if isinstance(expires, str) else None
    )


def _step(end: ssl.SSLObject) -> None:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return
