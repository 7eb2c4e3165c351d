"""Samples as text for Prometheus, in its own format or in OpenMetrics, as the scraper asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raylaunch.monitoring.metric_names import METRICS, Metric
from raylaunch.monitoring.scrape import Samples
from raylaunch.supervise.tally import Histogram

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.samples import Exemplar

    Bucket = tuple[str, float] | tuple[str, float, Exemplar]


class _Families:
    """What prometheus_client writes out: it asks for nothing but `collect`."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Family]:
        """Yield the families that have samples, in the order of `METRICS`."""
        for metric in METRICS:
            if metric.name in self._samples.values:
                yield _plain(metric, self._samples)
            elif metric.name in self._samples.histograms:
                yield _histogram(metric, self._samples)


def write_samples(samples: Samples, accept: str) -> tuple[bytes, str]:
    """Return the text and its content type.

    Args:
        samples: See `collect`.
        accept: The header of this name in the request.
    """
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder(accept)
    # A registry locks and checks for duplicates; families that were just made need neither.
    return encode(_Families(samples)), content_type


def _plain(metric: Metric, samples: Samples) -> Family:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    labels = ("deployment", *metric.labels)
    family = kind(metric.name, metric.help, labels=labels)
    for values, number in samples.values[metric.name]:
        family.add_metric(values, number)
    return family


def _histogram(metric: Metric, samples: Samples) -> Family:
    from prometheus_client.core import HistogramMetricFamily

    labels = ("deployment", *metric.labels)
    family = HistogramMetricFamily(metric.name, metric.help, labels=labels)
    for values, histogram in samples.histograms[metric.name]:
        family.add_metric(values, _buckets(histogram), histogram.total_s)
    return family


def _buckets(histogram: Histogram) -> list[Bucket]:
    """Return bound and count; the newest duration is the exemplar of its bucket."""
    from prometheus_client.samples import Exemplar

    bounds = [*map(str, histogram.bounds), "+Inf"]
    counts = map(float, histogram.cumulative())
    buckets: list[Bucket] = list(zip(bounds, counts, strict=True))
    newest = histogram.newest
    if newest is not None:
        place = histogram.place_of(newest)
        exemplar = Exemplar({"attempt": str(newest.attempt)}, newest.seconds, newest.at)
        buckets[place] = (*buckets[place][:2], exemplar)
    return buckets
