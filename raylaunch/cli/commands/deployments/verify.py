"""The verb that proves a service: verify."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylaunch.cli.command import Address, DeploymentName, Format, JsonOutput, command
from raylaunch.cli.output import Output, Style, table
from raylaunch.errors import VerifyError

if TYPE_CHECKING:
    from raylaunch.verify.verification import Proof, Verification

HEADER = ("CHECK", "RESULT", "SECONDS", "SEEN")


def add_commands(app: typer.Typer) -> None:
    """Register the verb of this module."""
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
    name: DeploymentName,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="S", min=1, help="Patience with one answer; by default 60."
        ),
    ] = None,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Prove the service as a client sees it.

    From this machine, with the openai client: the model is listed, every rank gives the same answer to the same
    prompt, a chat in English and one in Chinese, a stream, and, where the recipe promises them, a tool call and the
    reasoning parser's place for thoughts. Each check comes with the curl line that repeats it. A key is taken from
    VLLM_API_KEY, when the service asks for one.
    "unclear": nothing is wrong, but the promise was not seen kept either.
    Exit codes: 0 nothing failed, 8 not ready, 15 a check failed.
    """
    from raylaunch import api

    def tell(proof: Proof) -> None:
        out.note(f"{proof.check}: {proof.result}")

    found = api.verify(name, timeout=timeout, address=address, on_proof=tell)
    if output is Format.JSON:
        out.json(as_dict(found))
    else:
        out.lines(_lines(found, out.style, with_curl=not out.quiet))
    if found.failed:
        name = found.deployment
        raise VerifyError(
            f"{name}: {len(found.failed)} of {len(found.proofs)} checks failed",
            evidence="\n".join(f"{proof.check}: {proof.detail}" for proof in found.failed),
            todo=f"`raylaunch diagnose {name}`, and `raylaunch logs {name} --server N` of a server that is named",
        )


def as_dict(found: Verification) -> dict[str, Any]:
    """The checks as they are written to JSON."""
    return {
        "deployment": found.deployment,
        "endpoint": found.endpoint,
        "model": found.model,
        "result": found.result,
        "checks": [dataclasses.asdict(proof) for proof in found.proofs],
    }


def _lines(found: Verification, style: Style, *, with_curl: bool) -> Iterator[str]:
    yield from table([_row(proof) for proof in found.proofs], style, header=HEADER, kinds=("name",))
    if with_curl:
        yield from ("", style.paint("The same by hand:", "dim"))
        for proof in found.proofs:
            yield from ("", style.paint(f"# {proof.check}", "dim"), proof.curl)


def _row(proof: Proof) -> tuple[str, ...]:
    return (
        proof.check,
        proof.result,
        "-" if proof.seconds is None else f"{proof.seconds:.2f}",
        proof.detail,
    )
