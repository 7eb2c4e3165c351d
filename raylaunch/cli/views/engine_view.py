"""The engine configuration for people: each setting once, and per server where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raylaunch.cli.output import Style, table
from raylaunch.plan.engine_answer import EngineAnswer, EngineAnswers


def engine_lines(answers: EngineAnswers, style: Style) -> Iterator[str]:
    """Lay out what vLLM made of the servers. A refusal is a finding and is not repeated here."""
    became = {
        index: answer.became
        for index, answer in sorted(answers.items())
        if isinstance(answer, EngineAnswer) and answer.became
    }
    if not became:
        return
    yield ""
    yield style.paint("Engine configuration, built by vLLM", "title")
    rows = list(_rows(became))
    yield from table(rows, style, indent=4, kinds=("name",))


def engine_values(answers: EngineAnswers) -> dict[str, dict[str, object]]:
    """Return the answers as values for JSON, by server."""
    values: dict[str, dict[str, object]] = {}
    for index, answer in sorted(answers.items()):
        if isinstance(answer, EngineAnswer):
            refused = answer.refusal.words if answer.refusal else ""
            values[str(index)] = {"became": dict(answer.became), "refused": refused}
    return values


def _rows(became: Mapping[int, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    names = dict.fromkeys(name for settings in became.values() for name in settings)
    for name in names:
        values = {index: settings.get(name, "-") for index, settings in became.items()}
        if len(set(values.values())) == 1:
            yield name, next(iter(values.values()))
        else:
            yield name, ", ".join(f"server {index}: {value}" for index, value in values.items())
