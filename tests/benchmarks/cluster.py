"""What our own work costs in a cluster: `make bench-cluster`.

Runs 12 trials of real pods, three at a time, then 1,000 trials at 100 in parallel whose pods are fake (see
`fake_node`) and all else real: API server, controllers, scheduler, logs, store. The tuner is a process of its own,
with the service account and the Role of `manifests/base`. What happens when is seen by another client, which watches
the same Jobs; requests are counted where the tuner's process sends them. Prints targets beside figures, and asserts
nothing: machines differ.

Needs KUBECONFIG of an account that may create namespaces and nodes, `kubectl`, `openssl`, an S3 server (AWS_*), and
for real pods an image with `sh` and `date` (HPO_E2E_IMAGE).

    python -m tests.benchmarks.cluster [real|scale] [TRIALS] [PARALLEL] [LIFE_S]
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from hpo_core.kube import Kube, Listed
from hpo_core.lint import KUBERNETES, load_experiment
from hpo_core.manifest import LABEL_EXPERIMENT
from hpo_core.store import ExperimentStore
from hpo_core.tuner import Place, run_experiment
from tests.contracts.cluster_machine import namespace
from tests.fake_node import TAINT, fake_node

ROOT = Path(__file__).parents[2]
SERVERS = ("kube-apiserver", "etcd", "kube-controller", "kube-scheduler", "minio")
"""Programs whose processor time is told where they run on this machine, by the first 15 letters of their names."""
TICKS_PER_S = float(os.sysconf("SC_CLK_TCK"))
TRAIN_S = 5.0
NAME = "benchmark"
_HEAD = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.1\r\n")
_PATH = re.compile(
    r"/apis?/(?:[^/]+/)?v[^/]+(?:/namespaces/[^/]+)?/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?(?P<sub>/\w+)?$"
)


# --- the tuner, in a process of its own


def tune(file: str, store: str, told: str) -> None:
    """Run an experiment as `hpo run` does, and write down every request that this process sends, and when."""
    out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # threads write at once: each line is one write

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "http.client.connect":
            os.write(out, b"%f CONNECT %s\n" % (time.monotonic(), str(arguments[1]).encode()))
        elif event == "http.client.send" and (head := _HEAD.match(arguments[1])):
            target = head[2].partition(b"?X-Amz-")[0]
            os.write(out, b"%f %s %s\n" % (time.monotonic(), head[1], target))

    sys.addaudithook(note)
    run_experiment(load_experiment(file), Place.of(store, Path(file).parent, KUBERNETES))


@dataclass(frozen=True)
class Call:
    """A request that the tuner sent.

    Attributes:
        at: When, in seconds of the monotonic clock, which is the same in all processes.
        what: `create jobs`, `watch pods`, `follow pods/log`; `PUT trials` for those to the store.
        name: What it is about, where its address says it.
    """

    at: float
    what: str
    name: str

    @classmethod
    def read(cls, line: str) -> Call:
        at, method, target = line.split()
        url = urlsplit(target)
        path = _PATH.match(url.path)
        if method == "CONNECT":
            return cls(float(at), method, "")
        if path is None and url.path.startswith("/api"):
            return cls(float(at), "discover", url.path)
        if "list-type=" in url.query:
            return cls(float(at), "LIST", "")
        if path is None:
            folder, _, file = url.path.rpartition("/")
            return cls(float(at), f"{method} {folder.rpartition('/')[2]}", file)
        verbs = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
        read = "watch" if "watch=1" in url.query else "follow" if "follow=true" in url.query else "get"
        return cls(float(at), f"{verbs.get(method, read)} {path['kind']}{path['sub'] or ''}", path["name"] or "")

    @property
    def is_cluster(self) -> bool:
        return self.what[0].islower()


@dataclass
class Tuner:
    """A tuner as it is seen from outside while it runs.

    Attributes:
        began, ended: When its process was started, and was over.
        samples: When, and its resident memory then, in MiB.
        cpu_s: The processor time that it has used.
    """

    began: float = 0.0
    ended: float = 0.0
    samples: list[tuple[float, float]] = field(default_factory=list)
    cpu_s: float = 0.0
    calls: list[Call] = field(default_factory=list)

    def run(self, folder: Path, document: dict[str, Any], uri: str, kubeconfig: Path) -> None:
        """Run it to its end."""
        file, told = folder / f"{document['metadata']['namespace']}.yaml", folder / "requests"
        file.write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "tests.benchmarks.cluster", "--tuner", str(file), uri, str(told)]
        environment = {name: value for name, value in os.environ.items() if name != "HPO_IMAGE"}
        self.began = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, env={**environment, "KUBECONFIG": str(kubeconfig)}) as process:
            try:
                while process.poll() is None:
                    self._sample(process.pid)
                    time.sleep(0.1)
            finally:
                process.kill()
        self.ended = time.monotonic()
        if process.returncode:
            sys.exit("the tuner failed")
        self.calls = [Call.read(line) for line in told.read_text().splitlines()]

    def memory_at(self, at: float) -> float:
        """Its memory at that time, in MiB."""
        return next((mib for when, mib in self.samples if when >= at), self.samples[-1][1])

    def _sample(self, pid: int) -> None:
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f"/proc/{pid}/status").read_text()
            kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            self.samples.append((time.monotonic(), kib / 1024))
            self.cpu_s = processor_s(pid)


def processor_s(pid: int | str) -> float:
    """The processor time that a process has used, in seconds."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS_PER_S


# --- who looks on


class Onlooker:
    """Another client of the API server, with clocks and watches of its own.

    Attributes:
        created, complete: When it was told of each Job, and that it is Complete.
        running, over: When it was told that a Job's pod runs, and that it has ended.
        spans: From when to when a Job's pod ran as its status says, in whole seconds since 1970.
    """

    def __init__(self, where: str) -> None:
        self.created: dict[str, float] = {}
        self.complete: dict[str, float] = {}
        self.running: dict[str, float] = {}
        self.over: dict[str, float] = {}
        self.spans: dict[str, tuple[float, float]] = {}
        self.pods: set[str] = set()
        kube = Kube.connect(namespace=where)
        self._watches = [kube.watch("batch/v1", "Job"), kube.watch("v1", "Pod")]
        for watch, see in zip(self._watches, (self._see_job, self._see_pod), strict=True):
            threading.Thread(target=self._follow, args=(watch, see), daemon=True).start()

    def close(self) -> None:
        for watch in self._watches:
            watch.stop()

    @staticmethod
    def _follow(watch: Any, see: Any) -> None:
        for item in watch:
            now = time.monotonic()
            for document in item.items if isinstance(item, Listed) else (item.object,):
                see(document, now)

    def _see_job(self, job: dict[str, Any], now: float) -> None:
        name = str(job["metadata"]["name"])
        self.created.setdefault(name, now)
        conditions = (job.get("status") or {}).get("conditions") or []
        if any(told["type"] == "Complete" and told["status"] == "True" for told in conditions):
            self.complete.setdefault(name, now)

    def _see_pod(self, pod: dict[str, Any], now: float) -> None:
        name = str(pod["metadata"]["labels"].get("job-name"))
        self.pods.add(str(pod["metadata"]["name"]))
        for told in (pod.get("status") or {}).get("containerStatuses") or []:
            if "running" in told["state"]:
                self.running.setdefault(name, now)
            if ended := told["state"].get("terminated"):
                self.running.setdefault(name, now)
                self.over.setdefault(name, now)
                self.spans[name] = (_seconds(ended["startedAt"]), _seconds(ended["finishedAt"]))


@dataclass(frozen=True)
class Load:
    """Processor time of the programs on this machine up to an instant, and that instant."""

    at: float
    used: dict[str, float]

    @classmethod
    def now(cls) -> Load:
        used: defaultdict[str, float] = defaultdict(float)
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                used[(process / "comm").read_text().strip()] += processor_s(process.name)
        words = Path("/proc/stat").read_text().split()[1:9]
        busy = sum(int(word) for index, word in enumerate(words) if index not in (3, 4))
        return cls(time.monotonic(), {**used, "all": busy / TICKS_PER_S})

    def show(self, before: Load, tuner: Tuner) -> None:
        """Print how many processors each has kept busy since."""
        took_s = self.at - before.at
        busy = {name: (self.used.get(name, 0.0) - before.used.get(name, 0.0)) / took_s for name in (*SERVERS, "all")}
        told = ", ".join(f"{name} {busy[name]:.2f}" for name in SERVERS if name in self.used)
        print(f"  processors busy: tuner {tuner.cpu_s / took_s:.2f}, {told or 'servers are elsewhere'}", end="")
        print(f"; the whole machine {busy['all']:.2f} of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}")


# --- an experiment and its place


def make_document(where: str, *, trials: int, parallel: int, pod: dict[str, Any]) -> dict[str, Any]:
    """An experiment whose trials are Jobs of that pod."""
    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {"name": NAME, "namespace": where},
        "spec": {
            "objective": {"type": "minimize", "objectiveMetricName": "loss"},
            "algorithm": {"algorithmName": "random"},
            "parallelTrialCount": parallel,
            "maxTrialCount": trials,
            "parameters": [{"name": "lr", "parameterType": "double", "feasibleSpace": {"min": "0.01", "max": "0.05"}}],
            "trialTemplate": {
                "primaryContainerName": "main",
                "trialParameters": [{"name": "lr", "reference": "lr"}],
                "trialSpec": {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": pod}}},
            },
        },
    }


def make_pod(image: str, script: str, **more: Any) -> dict[str, Any]:
    """A pod whose container runs that script with the learning rate as `$0`."""
    command = ["sh", "-c", script, "${trialParameters.lr}"]
    container = {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": command}
    return {"containers": [container], "restartPolicy": "Never", **more}


@contextlib.contextmanager
def tuners_place(kube: Kube, folder: Path) -> Iterator[tuple[str, Path, str]]:
    """A namespace with the rights of a tuner, the kubeconfig of who has them, and a store; removed afterwards."""
    uri = f"s3://kfp-hpo-benchmarks/{secrets.token_hex(4)}"
    try:
        with namespace(kube, store=uri) as where:
            _kubectl("apply", "-n", where, "-k", str(ROOT / "manifests/base"))
            config = json.loads(_kubectl("config", "view", "--minify", "--raw", "--flatten", "-o", "json"))
            token = _kubectl("create", "token", "hpo-tuner", "-n", where, "--duration", "3h").strip()
            for user in config["users"]:
                user["user"] = {"token": token}
            kubeconfig = folder / f"{where}.kubeconfig"
            kubeconfig.touch(0o600)
            kubeconfig.write_text(json.dumps(config))
            yield where, kubeconfig, uri
    finally:
        objects = Place.of(uri).objects
        for key in objects.list(""):
            objects.delete(key)


def measure(
    folder: Path, place: tuple[str, Path, str], document: dict[str, Any]
) -> tuple[Tuner, Onlooker, ExperimentStore]:
    """Run an experiment, print what can be told of any, and return what was seen."""
    where, kubeconfig, uri = place
    tuner, onlooker, before = Tuner(), Onlooker(where), Load.now()
    tuner.run(folder, document, uri, kubeconfig)
    after, store = Load.now(), Place.of(uri).store(where, NAME)
    trials = store.trials()
    count, parallel = document["spec"]["maxTrialCount"], document["spec"]["parallelTrialCount"]
    print(f"\n{count} trials, {parallel} at a time")
    conditions = Counter(str(trial.condition) for trial in trials)
    attempts = sum(len(trial.attempts) for trial in trials)
    print(f"  {dict(conditions)}, attempts {attempts}, Jobs {len(onlooker.created)}, pods {len(onlooker.pods)}")
    show_gaps(tuner, onlooker, parallel)
    show_calls(tuner, onlooker)
    after.show(before, tuner)
    show_left(where)
    onlooker.close()
    return tuner, onlooker, store


# --- what is printed


def show_gaps(tuner: Tuner, onlooker: Onlooker, parallel: int) -> None:
    """Print how long it takes from a Complete to the create for which it makes room.

    The log's end comes before the Complete, which the Job controller tells after the pod's end; what the tuner reads of
    the log after that is its own work, and counts.
    """
    complete, created = sorted(onlooker.complete.values()), sorted(onlooker.created.values())
    sent = sorted(call.at for call in tuner.calls if call.what == "create jobs")
    print("  from a Complete, as another client is told of it, to the next create (target: < 300 ms)")
    for what, times in (("its request is sent", sent), ("its Job is told to that client", created)):
        gaps = [1000 * (at - end) for at, end in zip(times[parallel:], complete, strict=False)]
        print(f"    {what:32} {_spread(gaps, 'ms')}")


def show_calls(tuner: Tuner, onlooker: Onlooker) -> None:
    """Print the requests for each trial, by verb, and all others; those that make Jobs belong to the trials in turn."""
    names = sorted(onlooker.created, key=onlooker.created.__getitem__)
    number = {name: place for place, name in enumerate(names, 1)}
    counts: dict[int, Counter[str]] = {place: Counter({"create jobs": 1}) for place in number.values()}
    others = Counter({"create jobs": -len(number)})
    for call in tuner.calls:
        place = number.get(call.name) or number.get(call.name.rpartition("-")[0])
        if place and call.is_cluster:
            counts[place][call.what] += 1
        else:
            others[call.what] += 1
    for first, last in _windows(len(number)):
        total: Counter[str] = sum((counts[place] for place in range(first, last + 1)), Counter())
        each = ", ".join(f"{what} {n / (last - first + 1):.2f}" for what, n in sorted(total.items()))
        calls = total.total() / (last - first + 1)
        print(f"  API calls of a trial, {first}–{last}: {calls:.2f} (target: ≤ 5): {each}")
    of_cluster = ", ".join(f"{what} {n}" for what, n in sorted(others.items()) if what[0].islower() and n)
    print(f"  API calls besides: {of_cluster}; connections opened in all: {others['CONNECT']}")
    kinds = {what: n for what, n in others.items() if what[0].isupper() and what != "CONNECT"}
    told = ", ".join(f"{what} {n / len(number):.2f}" for what, n in sorted(kinds.items()) if n / len(number) >= 0.05)
    print(f"  store requests a trial: {sum(kinds.values()) / len(number):.2f}: {told}")


def show_left(where: str) -> None:
    """Print what is left in the cluster once the garbage is collected: the anchor, until `hpo delete`."""
    kube, began = Kube.connect(namespace=where), time.monotonic()
    kinds = (("batch/v1", "Job"), ("v1", "Pod"), ("v1", "ConfigMap"))
    while True:
        left = {kind: len(kube.list(version, kind, selector=LABEL_EXPERIMENT)) for version, kind in kinds}
        waited_s = time.monotonic() - began
        if not (left["Job"] or left["Pod"]) or waited_s > 120:
            print(f"  left in the cluster {waited_s:.0f} s after the end: {left}")
            return
        time.sleep(1)


def run_real(kube: Kube, folder: Path, image: str) -> None:
    """Twelve trials of real pods, three at a time."""
    script = f"date +%s.%N; sleep {TRAIN_S:g}; date +%s.%N; echo loss=$0"
    with tuners_place(kube, folder) as place:
        document = make_document(place[0], trials=12, parallel=3, pod=make_pod(image, script))
        tuner, onlooker, store = measure(folder, place, document)
        spans = []
        for number in range(1, 13):
            begun, ended = store.log(f"{number:05d}").decode().split()[:2]
            spans.append((float(begun), float(ended)))
    ideal_s = sum(end - begin for begin, end in spans) / 3
    wall_s = max(onlooker.complete.values()) - min(onlooker.created.values())
    told_s = sum(end - begin for begin, end in onlooker.spans.values()) / 3
    jobs_s = sum(onlooker.complete[name] - onlooker.created[name] for name in onlooker.complete) / 3
    print(f"  the trainers' own time, shared among three: {ideal_s:.2f} s; in whole seconds of the API {told_s:.2f} s")
    print(f"  wall ÷ that: {wall_s / ideal_s:.3f} from the first Job to the last Complete ({wall_s:.2f} s)", end="")
    print(f", {(tuner.ended - tuner.began) / ideal_s:.3f} of the whole process ({tuner.ended - tuner.began:.2f} s)")
    print(f"  wall ÷ the time from each Job to its Complete, shared among three: {wall_s / jobs_s:.3f}")
    show_cluster(onlooker)


def show_cluster(onlooker: Onlooker) -> None:
    """Print what the cluster takes for itself of a trial's time."""
    print("  what the cluster takes for itself of a trial's time")
    steps = (
        ("from Job to running pod", onlooker.created, onlooker.running),
        ("from the pod's end to Complete", onlooker.over, onlooker.complete),
    )
    for what, begin, end in steps:
        print(f"    {what:32} {_spread([at - begin[name] for name, at in end.items() if name in begin], 's')}")


def run_scale(kube: Kube, folder: Path, trials: int, parallel: int, life_s: float) -> None:
    """Many trials whose pods are fake."""
    with tuners_place(kube, folder) as place, fake_node(place[0], life_s) as node:
        toleration = {"key": TAINT, "value": node.name, "effect": "NoSchedule"}
        where = {"nodeSelector": {"kubernetes.io/hostname": node.name}, "tolerations": [toleration]}
        pod = make_pod("none", "none", terminationGracePeriodSeconds=1, **where)
        document = make_document(place[0], trials=trials, parallel=parallel, pod=pod)
        tuner, onlooker, store = measure(folder, place, document)
        show_cluster(onlooker)
        ends = sorted(onlooker.complete.values())
        wall_s = ends[-1] - min(onlooker.created.values())
        print(f"  {trials / wall_s:.2f} trials/s; pods live for {life_s:g} s, so at most {parallel / life_s:.1f}")
        print(f"  processor time of the tuner a trial: {1000 * tuner.cpu_s / trials:.1f} ms")
        told = [f"{tuner.memory_at(ends[n - 1]):.0f} at {n}" for n in _marks(trials)]
        print(f"  memory in MiB: {', '.join(told)}, at most {max(mib for _, mib in tuner.samples):.0f}")
        show_missing(store, trials)


def show_missing(store: ExperimentStore, trials: int) -> None:
    """Print how many lines of the trials' logs were lost or doubled."""
    lost = doubled = total = 0
    for number in range(1, trials + 1):
        lines = Counter(re.findall(r"^line (\d+) of", store.log(f"{number:05d}").decode(), re.MULTILINE))
        of = re.search(r" of (\d+)$", store.log(f"{number:05d}").decode(), re.MULTILINE)
        total += (count := int(of[1]) if of else 1)
        lost += count - len(lines)
        doubled += lines.total() - len(lines)
    print(f"  lines of logs: {total}, lost {lost}, doubled {doubled}")


def _marks(trials: int) -> list[int]:
    return sorted({max(trials // 10, 1), max(trials // 2, 1), trials})


def _windows(trials: int) -> list[tuple[int, int]]:
    if trials < 300:
        return [(1, trials)]
    middle, tenth = trials // 2, trials // 10
    return [(1, tenth), (middle - tenth // 2, middle + tenth // 2), (trials - tenth, trials)]


def _spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return "none seen"
    ordered, digits = sorted(values), 0 if unit == "ms" else 2
    p99 = ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)]
    middle = statistics.median(ordered)
    return f"median {middle:.{digits}f} {unit}, p99 {p99:.{digits}f} {unit}, max {ordered[-1]:.{digits}f} {unit}"


def _kubectl(*words: str) -> str:
    return subprocess.run(["kubectl", *words], check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def main(arguments: list[str]) -> None:
    """Measure what is named; both when nothing is."""
    if arguments[:1] == ["--tuner"]:
        tune(*arguments[1:])
        return
    if not os.environ.get("KUBECONFIG") or not os.environ.get("AWS_ENDPOINT_URL"):
        sys.exit("nothing measured: KUBECONFIG or AWS_ENDPOINT_URL is not set")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was made is removed then too
    which = arguments[:1] or ["real", "scale"]
    trials, parallel, life_s = [*arguments[1:], *("1000", "100", "15")[len(arguments[1:]) :]]
    with tempfile.TemporaryDirectory() as name:
        folder, kube = Path(name), Kube.connect()
        if "real" in which and not os.environ.get("HPO_E2E_IMAGE"):
            print("real pods: not measured, HPO_E2E_IMAGE names no image")
        elif "real" in which:
            run_real(kube, folder, os.environ["HPO_E2E_IMAGE"])
        if "scale" in which:
            run_scale(kube, folder, int(trials), int(parallel), float(life_s))


if __name__ == "__main__":
    main(sys.argv[1:])
