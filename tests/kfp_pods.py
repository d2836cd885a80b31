"""Steps of Kubeflow Pipelines as pods of a real cluster, from compiled YAML alone, as its driver and Argo make them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hpo_core.errors import TransientError
from hpo_core.kube import Kube
from tests import kfp_launcher

ROOT = Path(__file__).parents[1]
PATIENCE_S = 600.0
RUN_ID = "{{$.pipeline_job_uuid}}"

Container = Mapping[str, Any]
"""Of an executor: image, command, args."""


@dataclass(frozen=True)
class Step:
    """What one step runs.

    Attributes:
        container: Its executor's container.
        defaults: The values of inputs that need not be given.
        parameters: Names of the parameters that it puts out.
        artifacts: Names of the artifacts that it puts out, with their type.
    """

    container: Container
    defaults: Mapping[str, Any]
    parameters: tuple[str, ...]
    artifacts: Mapping[str, Any]

    @classmethod
    def of(cls, document: Mapping[str, Any], component: str) -> Step:
        """Read it from a compiled document."""
        told = document["components"][component]
        inputs, outputs = (told.get(f"{way}Definitions") or {} for way in ("input", "output"))
        return cls(
            document["deploymentSpec"]["executors"][told["executorLabel"]]["container"],
            {n: i["defaultValue"] for n, i in (inputs.get("parameters") or {}).items() if "defaultValue" in i},
            tuple(outputs.get("parameters") or ()),
            {name: output["artifactType"] for name, output in (outputs.get("artifacts") or {}).items()},
        )


def component(name: str) -> Step:
    """The step of a folder of `components/`."""
    document = yaml.safe_load((ROOT / "components" / name / "component.yaml").read_text())
    (only,) = document["components"]
    return Step.of(document, only)


@dataclass(frozen=True)
class Ended:
    """How a step's pod has ended.

    Attributes:
        code: Exit code.
        log: What it printed.
        parameters: What it has put out.
        artifacts: The URI of each artifact.
        metadata: That of each artifact.
    """

    code: int
    log: str
    parameters: Mapping[str, Any]
    artifacts: Mapping[str, str]
    metadata: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Pods:
    """Where steps run.

    Attributes:
        kube: The cluster.
        namespace: Where in it.
        image: The engine's image, in place of the one that the YAML names.
        root: `minio://BUCKET/PREFIX` of the artifacts.
        server: The artifacts' server: endpoint, access_key, secret_key.
        account: Whose permissions a step has.
    """

    kube: Kube
    namespace: str
    image: str
    root: str
    server: Mapping[str, str]
    account: str = "pipeline-runner"
    uris: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def start(self, name: str, step: Step, values: Mapping[str, Any]) -> None:
        """Start a step's pod, of that name."""
        root = f"{self.root}/{name}"
        self.uris[name] = {artifact: f"{root}/{artifact}" for artifact in step.artifacts}
        outputs = {
            "outputFile": "/tmp/kfp_outputs/output_metadata.json",
            "parameters": {n: {"outputFile": f"/tmp/kfp/outputs/{n}"} for n in step.parameters},
            "artifacts": {
                n: {"artifacts": [{"name": n, "uri": self.uris[name][n], "type": kind, "metadata": {}}]}
                for n, kind in step.artifacts.items()
            },
        }
        told = json.dumps({"inputs": {"parameterValues": {**step.defaults, **values}}, "outputs": outputs})
        args = [told if arg == "{{$}}" else arg for arg in step.container["args"]]
        program = ["python3", "-c", Path(kfp_launcher.__file__).read_text()]
        self.kube.create(self._pod(name, [*program, told, *step.container["command"], *args]))

    def end(self, name: str) -> Ended:
        """Wait for the end of a step's pod."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            pod = self.kube.get("v1", "Pod", name, namespace=self.namespace)
            status: dict[str, Any] = next(iter((pod.get("status") or {}).get("containerStatuses") or []), {})
            if ended := (status.get("state") or {}).get("terminated"):
                return self._ended(name, ended)
            time.sleep(0.2)
        raise AssertionError(f"the step {name} has not ended within {PATIENCE_S} s: {pod.get('status')}")

    def kill(self, name: str) -> None:
        """Kill whatever the first process of a step's pod has started, without a warning."""
        command = ["kubectl", "exec", "-n", self.namespace, name, "-c", "main", "--", "sh", "-c", "kill -9 -1"]
        subprocess.run(command, check=False, capture_output=True, timeout=60)  # it may go with the pod

    def run(self, name: str, step: Step, **values: Any) -> Ended:
        """Run a step to its end."""
        self.start(name, step, values)
        return self.end(name)

    def log(self, name: str) -> str:
        """What a step has printed; "" before it has begun."""
        with suppress(TransientError):
            return self._log(name)
        return ""

    def _log(self, name: str) -> str:
        return b"".join(self.kube.pod_log(name, "main", follow=False, namespace=self.namespace)).decode()

    def run_pipeline(self, document: Mapping[str, Any], run_id: str, given: Mapping[str, Any]) -> dict[str, Ended]:
        """Run the tasks of a compiled pipeline one by one, up to the first that fails; returns how each ended."""
        defined = document["root"]["inputDefinitions"]["parameters"]
        inputs = {name: told["defaultValue"] for name, told in defined.items() if "defaultValue" in told} | dict(given)
        waiting, done = dict(document["root"]["dag"]["tasks"]), dict[str, Ended]()
        while waiting and all(ended.code == 0 for ended in done.values()):
            name = next(n for n, task in waiting.items() if set(task.get("dependentTasks") or ()) <= done.keys())
            task = waiting.pop(name)
            values = {
                parameter: _value(source, inputs, done, run_id)
                for parameter, source in task["inputs"]["parameters"].items()
            }
            done[name] = self.run(name, Step.of(document, task["componentRef"]["name"]), **values)
        return done

    def _ended(self, name: str, ended: Mapping[str, Any]) -> Ended:
        told = json.loads(ended.get("message") or "{}") if ended["exitCode"] == 0 else {}
        found = told.get("artifacts") or {}
        metadata = {artifact: entry["artifacts"][0].get("metadata") or {} for artifact, entry in found.items()}
        parameters = told.get("parameterValues") or {}
        return Ended(int(ended["exitCode"]), self._log(name), parameters, self.uris[name], metadata)

    def _pod(self, name: str, command: list[str]) -> dict[str, Any]:
        of_pod = {"KFP_POD_NAME": "metadata.name", "KFP_POD_UID": "metadata.uid"}
        folders = {"minio": "/minio"}
        container = {
            "name": "main",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": command,
            "env": [
                *({"name": n, "valueFrom": {"fieldRef": {"fieldPath": path}}} for n, path in of_pod.items()),
                {"name": kfp_launcher.STORE, "value": json.dumps(self.server)},
            ],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": n, "mountPath": path} for n, path in folders.items()],
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "restartPolicy": "Never",
                "serviceAccountName": self.account,
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [container],
                "volumes": [{"name": n, "emptyDir": {}} for n in folders],
            },
        }


def _value(source: Mapping[str, Any], inputs: Mapping[str, Any], done: Mapping[str, Ended], run_id: str) -> Any:
    """The value of a task's input."""
    if "componentInputParameter" in source:
        return inputs[source["componentInputParameter"]]
    if "taskOutputParameter" in source:
        output = source["taskOutputParameter"]
        return done[output["producerTask"]].parameters[output["outputParameterKey"]]
    constant = source["runtimeValue"]["constant"]
    return run_id if constant == RUN_ID else constant
