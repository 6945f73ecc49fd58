"""deploy/kubernetes: what the published schemas take, and the rules that these do not know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines import worker
from pipelines.cli import annotate_options

MANIFESTS = Path(__file__).parents[2] / "deploy" / "kubernetes"
NAMES = ("annotate", "flink_task_manager")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())


@pytest.fixture
def cron_job() -> dict[str, Any]:
    return read("annotate")


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("name", NAMES)
def test_manifests_are_valid(name: str, version: str) -> None:
    assert sorted(path.stem for path in MANIFESTS.glob("*.yaml")) == sorted(NAMES)
    kubernetes_validate.validate(read(name), version, strict=True)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]["spec"]


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_root_and_memory_is_bounded(name: str) -> None:
    pod = pod_of(read(name))
    assert pod["securityContext"]["runAsNonRoot"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["initContainers"] + pod["containers"]:
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]} and security["allowPrivilegeEscalation"] is False
        if "torchmoji" in container["image"]:
            assert security["readOnlyRootFilesystem"]
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert all(isinstance(argument, str) for argument in container.get("args", ()))


def test_the_schema_would_notice(cron_job: dict[str, Any]) -> None:
    cron_job["spec"]["jobTemplate"]["spec"]["podFailurePolicies"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(cron_job, "1.37", strict=True)


def test_the_cron_job_keeps_rules_that_the_schema_does_not_know(cron_job: dict[str, Any]) -> None:
    assert cron_job["spec"]["concurrencyPolicy"] == "Forbid"
    job = cron_job["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    containers = pod["initContainers"] + pod["containers"]
    assert pod["restartPolicy"] == "Never"  # or podFailurePolicy is refused
    actions = {}
    for rule in job["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            codes = rule["onExitCodes"]
            assert (
                codes["operator"] == "In"
                and codes["values"] == sorted(set(codes["values"]))
                and 0 not in codes["values"]
            )
            actions |= {(codes["containerName"], code): rule["action"] for code in codes["values"]}
    assert {name for name, _ in actions} <= {container["name"] for container in containers}
    assert actions == {
        ("annotate", 2): "FailJob",
        ("annotate", 3): "FailJob",
        ("annotate", 4): "Ignore",
        ("verify", 1): "FailJob",
        ("verify", 2): "FailJob",
    }
    (annotate,) = pod["initContainers"]
    annotate_options.parse(annotate["args"])


def test_a_pool_of_workers_is_beside_each_task_manager() -> None:
    (pool,) = pod_of(read("flink_task_manager"))["initContainers"]
    assert pool["restartPolicy"] == "Always"  # a sidecar
    module, port = pool["command"][2], pool["command"][-1]
    assert module == worker.__spec__.name
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        checked = pool[probe]["exec"]["command"]
        assert checked == [*pool["command"], "--check"]
        options, rest = worker.parser().parse_known_args(checked[3:])
        assert (options.check, options.port, rest) == (True, int(port), [])
    comment = (MANIFESTS / "flink_task_manager.yaml").read_text().partition("apiVersion")[0]
    assert re.findall(r"localhost:(\d+)", comment) == [port]
