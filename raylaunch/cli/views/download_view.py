"""Downloads in progress: lines that are redrawn on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import time
from collections.abc import Sequence

from raylaunch.cli.output import Output
from raylaunch.cli.views.durations import duration
from raylaunch.cli.views.weights_view import size_text
from raylaunch.plan.wanted_weights import DownloadProgress, Stock

NOTE_EVERY_S = 10.0
"""How often a pipe gets a line about a download."""
RATE_OVER_S = 20.0
"""The rate is the mean over this many seconds: hubs send in bursts."""

Key = tuple[str, str]
"""Node id and role of the weights."""


class DownloadView:
    """Shows the progress of the downloads on stderr."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._is_live = out.error_style.width is not None and not out.quiet
        self._drawn = 0
        self._noted_at: dict[Key, float] = {}
        self._samples: dict[Key, list[tuple[float, int]]] = {}

    def update(self, seen: Sequence[tuple[Stock, DownloadProgress]]) -> None:
        """Show how far the downloads are."""
        now = time.monotonic()
        lines = [self._line(stock, progress, now) for stock, progress in seen]
        if self._is_live:
            self._out.redraw(lines, above=self._drawn)
            self._drawn = len(lines)
            return
        for line, (stock, progress) in zip(lines, seen, strict=True):
            if not progress.running or self._is_due(_key(stock), now):
                self._noted_at[_key(stock)] = now
                self._out.note(line)

    def finish(self) -> None:
        """Keep the last lines on the screen."""
        self._drawn = 0

    def _is_due(self, key: Key, now: float) -> bool:
        noted_at = self._noted_at.get(key)
        return noted_at is None or now - noted_at >= NOTE_EVERY_S

    def _line(self, stock: Stock, progress: DownloadProgress, now: float) -> str:
        rate = self._rate(_key(stock), now, progress.have_bytes)
        head = f"{stock.name} {stock.wanted.role}: {size_text(progress.have_bytes)}"
        if not progress.running:
            return f"{head}, {'failed' if progress.failed else 'done'}"
        if not progress.total_bytes:
            return f"{head}, {size_text(rate)}/s  {progress.line}"
        total = size_text(progress.total_bytes)
        share = min(progress.have_bytes / progress.total_bytes, 1.0)
        text = f"{head} of {total} ({share:.0%}), {size_text(rate)}/s"
        left = progress.total_bytes - progress.have_bytes
        if rate > 0 and left > 0:
            text += f", {duration(left / rate)} left"
        return f"{text}  {progress.line}"

    def _rate(self, key: Key, now: float, have_bytes: int) -> float:
        """Return the bytes per second over the last RATE_OVER_S seconds."""
        samples = [*self._samples.get(key, []), (now, have_bytes)]
        samples = [sample for sample in samples if now - sample[0] <= RATE_OVER_S]
        self._samples[key] = samples
        first_at, first_bytes = samples[0]
        if now <= first_at:
            return 0.0
        return max(0.0, (have_bytes - first_bytes) / (now - first_at))


def _key(stock: Stock) -> Key:
    return stock.node_id, stock.wanted.role
