"""Ray Serve LLM with the tiny model: what its user would run.

`replicas`: two engines; `dp`: its data-parallel gang.

serve_app.py replicas|dp MODEL PORT ENGINE_KWARGS (as JSON); tells the status of the deployment as
JSON lines once a line comes on stdin.
"""

import json
import sys
import time

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

STATUS_S = 0.5


def build(way: str, model: str, engine: dict[str, object]):  # noqa: ANN201
    if way == "dp":
        engine = engine | {"data_parallel_size": 2}
    config = LLMConfig(
        model_loading_config={"model_id": "tiny", "model_source": model},
        engine_kwargs=engine,
        deployment_config={"num_replicas": 2} if way == "replicas" else {},
        placement_group_config={"bundles": [{"CPU": 1, "NPU": 8}]},
        accelerator_config={"kind": "cpu"},
        log_engine_metrics=False,
    )
    if way == "dp":
        from ray.serve.llm import build_dp_openai_app

        return build_dp_openai_app({"llm_config": config})
    return build_openai_app({"llm_configs": [config]})


def seen() -> dict[str, object]:
    status = serve.status()
    deployments = {
        name: [
            text(one.status),
            {text(state): count for state, count in one.replica_states.items()},
        ]
        for app in status.applications.values()
        for name, one in app.deployments.items()
    }
    apps = {name: text(app.status) for name, app in status.applications.items()}
    return {
        "serve": apps,
        "deployments": deployments,
        "proxies": sorted(map(text, status.proxies.values())),
    }


def text(state: object) -> str:
    return str(getattr(state, "value", state))


if __name__ == "__main__":
    ray.init(logging_level="WARNING")
    serve.start(http_options={"host": "0.0.0.0", "port": int(sys.argv[3])})
    serve.run(build(sys.argv[1], sys.argv[2], json.loads(sys.argv[4])), blocking=False)
    sys.stdin.readline()
    last = None
    while True:
        now = seen()
        if now != last:
            print(
                "\n" + json.dumps({"at": time.time(), **now}), flush=True
            )  # between the lines of its workers
        last = now
        time.sleep(STATUS_S)
