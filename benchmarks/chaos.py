"""Random faults against the running product: after each round the service is ready or gone.

Two kinds of rounds, chosen at random from a seed. A *running* round injures one deployment that
stays up for the whole run: the service must be ready again, restarted exactly when a fault called
for it, with no process of an earlier attempt left. A *start* round interrupts a start of its own:
the exit status must be a documented one, and after `raylaunch stop` no process and no record may be
left. All on embedded Ray clusters, with the stand-in for vLLM of the tests or with real vLLM.

A fault that this machine cannot inject is left out, and the table says so: a full log disk and
read-only bundles need root, a step of the wall clock and a slow disk need a C compiler. A round
that failed is repeated with the same seed. `--resume FILE` keeps each outcome in a file, and goes
on behind those that are in it.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

from chaos_draw import draw, possible_kinds
from chaos_faults import Shim, may_mount
from chaos_product import STANDIN, VLLM, Server
from chaos_rounds import Outcome, World, run_rounds
from report import publish, table

ROUNDS = 200
SHORT_ROUNDS = 20


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return the table: one row per kind, in order of first appearance."""
    by_kind: dict[str, list[Outcome]] = {}
    for one in outcomes:
        by_kind.setdefault(one.kind, []).append(one)
    made = []
    for kind, same in by_kind.items():
        wrong = [one for one in same if one.problems]
        texts = [_cell(f"round {one.number}: {'; '.join(one.problems)}") for one in wrong]
        slowest = max(one.seconds for one in same)
        expected = str(len(same) - len(wrong))
        made.append([kind, str(len(same)), expected, f"{slowest:.1f}", "<br>".join(texts) or "-"])
    return made


def _cell(text: str) -> str:
    """Return a text as it can stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def missed_goals(outcomes: Sequence[Outcome], seed: int) -> list[str]:
    """Return a sentence per round that was not as expected."""
    return [
        f"chaos: seed {seed}, round {one.number}, {one.kind}: {problem}"
        for one in outcomes
        for problem in one.problems
    ]


@dataclass(frozen=True)
class Result:
    """A whole run. `left_out`: why a kind is not possible on this machine."""

    outcomes: list[Outcome]
    skipped: int
    """Rounds that were not begun: no time was left."""
    slow_starts: int
    left_out: dict[str, str]

    def as_table(self) -> str:
        """Return the table, as it stands in docs/benchmarks.md."""
        head = ["fault", "rounds", "as expected", "slowest, s", "what went wrong"]
        notes = [f"Left out: {kind}: {why}." for kind, why in self.left_out.items()]
        if self.skipped:
            notes.append(f"{self.skipped} rounds were not begun: the time was over.")
        if self.slow_starts:
            notes.append(
                f"{self.slow_starts} starts were begun again: the machine was too busy for Ray, "
                "and nothing of them was left."
            )
        return "\n\n".join([table(head, rows(self.outcomes)), *notes])


def run(
    rounds: int,
    seed: int,
    server: Server,
    *,
    only: Sequence[str] = (),
    limit_s: float,
    resume: Path | None = None,
) -> Result:
    """Draw the rounds and run them; begin none after `limit_s`."""
    done = _kept(resume) if resume else []
    with tempfile.TemporaryDirectory(prefix="rl-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        shim = Shim(folder)
        can_preload = shim.build()
        can_mount = may_mount(folder)
        kinds, left_out = possible_kinds(can_mount=can_mount, can_preload=can_preload)
        chosen = [kind for kind in kinds if kind in only] or kinds
        world = World(folder, server, can_mount, shim if can_preload else None)
        ran = run_rounds(
            draw(seed, rounds, chosen),
            world,
            limit_s=limit_s,
            done=done,
            keep=lambda outcome: _keep(resume, outcome),
        )
    return Result(ran.outcomes, ran.skipped, ran.slow_starts, left_out)


def _kept(file: Path) -> list[Outcome]:
    """Return the outcomes that an earlier run kept, up to the first that was wrong."""
    if not file.exists():
        return []
    stored = [json.loads(line) for line in file.read_text().splitlines()]
    found = [Outcome(**{**one, "problems": tuple(one["problems"])}) for one in stored]
    good = list(takewhile(lambda one: not one.problems, found))
    file.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in good))
    return good


def _keep(file: Path | None, outcome: Outcome) -> None:
    if file is not None:
        with file.open("a") as opened:
            opened.write(f"{json.dumps(asdict(outcome))}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=180, help="begin no round after this")
    parser.add_argument("--kind", action="append", default=[], help="only this kind")
    parser.add_argument("--vllm", action="store_true", help="real vLLM on CPU, 20 rounds")
    parser.add_argument("--resume", type=Path, help="file that keeps the outcomes")
    parser.add_argument("--short", action="store_true", help="20 rounds; the page stays as it is")
    given = parser.parse_args()
    # A run that is stopped stops its deployment and unmounts its disks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    few = given.short or given.vllm
    result = run(
        given.rounds or (SHORT_ROUNDS if few else ROUNDS),
        given.seed,
        VLLM if given.vllm else STANDIN,
        only=given.kind,
        limit_s=60 * given.minutes,
        resume=given.resume,
    )
    missed = missed_goals(result.outcomes, given.seed)
    what = "real vLLM on CPU" if given.vllm else "the stand-in of the tests"
    intro = (
        f"`raylaunch start local-dual` with {what}, seed {given.seed}. "
        "After each round: the service is ready or gone, no process or record is left, no restart "
        "without a fault, documented exit statuses. `clock-step` and `slow-disk` act on the "
        "processes of the deployment and of its Ray alone, by a library that they preload."
    )
    rounds = [asdict(one) for one in result.outcomes]
    publish(
        "chaos-vllm" if given.vllm else "chaos",
        "Random faults, real vLLM" if given.vllm else "Random faults",
        f"{intro}\n\n{result.as_table()}",
        {"seed": given.seed, "rounds": rounds, "left_out": result.left_out},
        missed=missed,
        short=given.short,
        arguments=f"--seed {given.seed}{' --vllm' if given.vllm else ''}",
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
