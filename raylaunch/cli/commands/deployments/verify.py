"""The verb `verify`: prove a service as a client sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import (
    Address,
    DeploymentOrGroup,
    Format,
    Group,
    JsonOutput,
    refuse_nan,
    target,
)
from raylaunch.cli.output import Output, Style, table
from raylaunch.errors import VerifyError

if TYPE_CHECKING:
    from raylaunch.verify.verification import Proof, Verification

HEADER = ("CHECK", "RESULT", "SECONDS", "SEEN")


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch verify a2-dual
        raylaunch -q verify a2-dual && echo proven
        raylaunch verify a2-dual -o json | jq -r '.checks[] | select(.result == "failed") | .curl'
        """,
    )(verify)


def verify(
    out: Output,
    name: DeploymentOrGroup,
    group: Group = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="S",
            min=1,
            callback=refuse_nan,
            help="Time-out of one answer; by default 60.",
        ),
    ] = None,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Prove the service as a client sees it.

    From this machine, with the openai client: the model is listed, every rank gives the same answer
    to the same prompt, a chat in English and one in Chinese, a stream, and, where the recipe
    promises them, a tool call and the reasoning parser's separate field. Each check comes with the
    curl line that repeats it. The API key is taken from VLLM_API_KEY if the service requires one.
    "unclear": nothing is wrong, but the promise was not observed either.
    Exit codes: 0 nothing failed, 8 not ready, 15 a check failed.
    """
    from raylaunch import api

    def report(proof: Proof) -> None:
        out.note(f"{proof.check}: {proof.result}")

    found = api.verify(target(name, group), timeout=timeout, address=address, on_proof=report)
    if output is Format.JSON:
        out.json(as_dict(found))
    else:
        out.lines(_lines(found, out.style, with_curl=not out.quiet))
    if found.failed:
        raise _failed(found)


def as_dict(found: Verification) -> dict[str, object]:
    """Return the checks as they are written to JSON."""
    return {
        "deployment": found.deployment,
        "endpoint": found.endpoint,
        "model": found.model,
        "result": found.result,
        "checks": [dataclasses.asdict(proof) for proof in found.proofs],
    }


def _failed(found: Verification) -> VerifyError:
    name = found.deployment
    logs = f"`raylaunch logs {name} --server N` of a server that is named"
    return VerifyError(
        f"{name}: {len(found.failed)} of {len(found.proofs)} checks failed",
        evidence="\n".join(f"{proof.check}: {proof.detail}" for proof in found.failed),
        todo=f"`raylaunch diagnose {name}`, and {logs}",
    )


def _lines(found: Verification, style: Style, *, with_curl: bool) -> Iterator[str]:
    rows = [_row(proof) for proof in found.proofs]
    yield from table(rows, style, header=HEADER, kinds=("name",))
    if not with_curl:
        return
    yield ""
    yield style.paint("The same by hand:", "dim")
    for proof in found.proofs:
        yield ""
        yield style.paint(f"# {proof.check}", "dim")
        yield proof.curl


def _row(proof: Proof) -> tuple[str, ...]:
    seconds = "-" if proof.seconds is None else f"{proof.seconds:.2f}"
    return (proof.check, proof.result, seconds, proof.detail)
