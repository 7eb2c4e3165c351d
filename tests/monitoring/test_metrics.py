"""The metrics: names after the conventions, the numbers of `status`, both formats."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from deployments import NOW, make_scrape, make_status, with_seen
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar, Timestamp

from raylaunch.monitoring.exposition import write_samples
from raylaunch.monitoring.metric_names import METRICS
from raylaunch.monitoring.scrape import Samples, Scrape, collect
from raylaunch.supervise.deployment_status import GatewayCounters, GatewayNode, GatewayReport
from raylaunch.supervise.state import Exit, Phase

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def read(scrape: Scrape) -> dict[tuple[str, ...], float]:
    text, _ = write_samples(collect(scrape), "text/plain")
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = [f"{key}={value}" for key, value in sorted(sample.labels.items())]
            assert "deployment=a2-dual" in labels
            labels.remove("deployment=a2-dual")
            found[(sample.name, *labels)] = sample.value
    return found


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric):
    assert re.fullmatch(r"raylaunch_[a-z][a-z0-9_]*", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert not re.search(r"_(ms|mb|percent|count|sum|bucket)(_|$)", metric.name)
    assert metric.help.endswith(".")
    assert "deployment" not in metric.labels


def test_every_metric_of_the_table_is_served():
    node = GatewayNode("10.0.0.1", "http://10.0.0.1:8000/v1", 7, GatewayCounters(requests=5))
    report = GatewayReport(node.endpoint, "least-loaded", (node,))
    status = replace(make_status(), gateway=report)
    samples = collect(replace(make_scrape(status=status), gateway_up=True))
    served = {*samples.values, *samples.histograms}
    assert served == {metric.name for metric in METRICS}


def test_the_numbers_are_those_of_the_status():
    numbers = read(make_scrape())
    rank = ("group=serve-0", "rank=1")
    assert numbers["raylaunch_rank_requests_running", *rank] == 3
    assert numbers["raylaunch_rank_tokens_total", *rank] == 1000
    assert numbers["raylaunch_rank_progress_age_seconds", *rank] == 2
    assert numbers["raylaunch_group_attempt", "group=serve-0"] == 2
    assert numbers["raylaunch_deployment_phase", "phase=ready"] == 1
    assert numbers["raylaunch_deployment_phase", "phase=failed"] == 0
    restarts = ("cause=killed", "class=transient", "group=serve-0")
    assert numbers["raylaunch_group_restarts_total", *restarts] == 1
    assert numbers["raylaunch_group_last_failure_timestamp_seconds", *restarts] == NOW - 300
    assert numbers["raylaunch_group_recovery_seconds_sum", "group=serve-0"] == 70
    bucket = ("group=serve-0", "le=0.1")
    assert numbers["raylaunch_group_detection_seconds_bucket", *bucket] == 1
    npu = ("node=10.0.0.1", "npu=7")
    assert numbers["raylaunch_npu_utilization_ratio", *npu] == 0.8
    assert numbers["raylaunch_npu_hbm_total_bytes", *npu] == 64 << 30
    errors = ("kind=corrected", *npu)
    assert numbers["raylaunch_npu_hbm_ecc_errors_total", *errors] == 5


def test_a_dead_server_is_down_and_its_ages_grow():
    status = with_seen(make_status(phase=Phase.RESTARTING), 1, exit=Exit(NOW, signal=9))
    numbers = read(make_scrape(status=status))
    place = ("group=serve-0", "node=10.0.0.2", "role=headless", "server=1")
    assert numbers["raylaunch_server_up", *place] == 0
    alive = ("group=serve-0", "node=10.0.0.1", "role=primary", "server=0")
    assert numbers["raylaunch_server_up", *alive] == 1


def test_an_agent_that_does_not_answer_leaves_its_samples_out():
    scrape = make_scrape()
    silent = replace(scrape, usage={("serve-0", 0): scrape.usage["serve-0", 0]})
    names = {key for key in read(silent) if key[0].startswith("raylaunch_n")}
    nodes = {label for key in names for label in key if label.startswith("node=")}
    assert nodes == {"node=10.0.0.1"}


def test_openmetrics_is_served_to_whom_asks_for_it():
    text, kind = write_samples(collect(make_scrape()), OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    families = list(openmetrics.text_string_to_metric_families(text.decode()))
    assert {family.name for family in families} >= {"raylaunch_group_restarts"}


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS, "text/html, " + OPENMETRICS, ""])
def test_each_format_is_read_as_what_was_collected(accept):
    scrape = make_scrape()
    hostile = 'a "model"\\with {braces},\nlines and é'
    samples = collect(replace(scrape, status=replace(scrape.status, served_name=hostile)))
    text, kind = write_samples(samples, accept)
    is_open = kind.startswith("application/openmetrics-text")
    assert is_open == ("openmetrics" in accept)
    parse = (
        openmetrics.text_string_to_metric_families if is_open else text_string_to_metric_families
    )
    families = list(parse(text.decode()))
    assert {family.documentation for family in families} <= {metric.help for metric in METRICS}
    by_name = {metric.name.removesuffix("_total"): metric.kind for metric in METRICS}
    assert {family.name: family.type for family in families}.items() <= by_name.items()
    read_back = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if family.type != "histogram"
    }
    labels_of = {metric.name: ("deployment", *metric.labels) for metric in METRICS}
    collected = {
        (name, frozenset(zip(labels_of[name], labels, strict=True))): value
        for name, found in samples.values.items()
        for labels, value in found
    }
    assert read_back == collected


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e300, 5e-324, 0.1])
@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS])
def test_each_number_is_read_as_it_was(accept, value):
    samples = Samples("a")
    samples.add("raylaunch_gateway_up", value)
    text, _ = write_samples(samples, accept)
    is_open = accept == OPENMETRICS
    parse = (
        openmetrics.text_string_to_metric_families if is_open else text_string_to_metric_families
    )
    [family] = parse(text.decode())
    assert str(family.samples[0].value) == str(value)


def test_a_duration_has_the_attempt_as_its_exemplar():
    text, _ = write_samples(collect(make_scrape()), OPENMETRICS)
    families = openmetrics.text_string_to_metric_families(text.decode())
    found = {
        sample.name: (sample.labels["le"], sample.exemplar)
        for family in families
        for sample in family.samples
        if sample.exemplar is not None
    }
    detection = found["raylaunch_group_detection_seconds_bucket"]
    assert detection == ("0.1", Exemplar({"attempt": "1"}, 0.08, Timestamp(NOW - 300, 0)))
    recovery = found["raylaunch_group_recovery_seconds_bucket"]
    assert recovery == ("120.0", Exemplar({"attempt": "2"}, 70.0, Timestamp(NOW - 230, 0)))


def test_no_label_is_unbounded():
    by_size = {servers: len(read(make_scrape(servers))) for servers in (2, 4)}
    again = len(read(replace(make_scrape(4), started_at=1.0)))
    assert again == by_size[4]
    assert by_size[4] < 2 * by_size[2]
