"""Holds what is the Prometheus operator's against its types, and looks whether Prometheus would find it, as job setu.

Called with files of manifests, each one whole choice of overlay and components.
"""

import sys

import yaml
from cloudcoil.models.prometheus_operator import v1

TYPES = {"ServiceMonitor": v1.ServiceMonitor, "PrometheusRule": v1.PrometheusRule}


def job(monitor, resources):
    """The job that Prometheus names the series by which this ServiceMonitor brings."""
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [resource["metadata"]["labels"] for resource in resources if resource["kind"] == "Service"]
    jobs = {labels.get(monitor["spec"]["jobLabel"]) for labels in services if wanted <= labels.items()}
    return jobs.pop() if len(jobs) == 1 else None


found = set()
for file in sys.argv[1:]:
    with open(file) as text:
        resources = list(yaml.safe_load_all(text))
    for resource in resources:
        if not resource["apiVersion"].startswith("monitoring.coreos.com/"):
            continue
        kind = resource["kind"]
        found.add(kind)
        TYPES[kind].model_validate(resource, extra="forbid")
        if not resource["metadata"]["labels"].get("release"):
            sys.exit(f"{file}: {kind} has no label release, by which a Prometheus selects it")
        if kind == "ServiceMonitor" and job(resource, resources) != "setu":
            sys.exit(f"{file}: the job is {job(resource, resources)}, not setu as alerts and dashboard have it")
if found != set(TYPES):
    sys.exit(f"only {found} of {set(TYPES)} came")
