"""What our own work costs: `make bench`.

Runs 12 trials of 2 s, three at a time, and compares the wall time with the trials' own time, from fork to exit, shared
among three. Measures a supervisor apart. Asserts nothing: machines differ, ratios tell.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from hpo_core.launch.local import supervisor_program

EXPERIMENT = """
apiVersion: kubeflow.org/v1beta1
kind: Experiment
metadata: {name: overhead, namespace: default}
spec:
  objective: {type: minimize, objectiveMetricName: loss}
  algorithm: {algorithmName: random}
  parallelTrialCount: 3
  maxTrialCount: 12
  parameters:
    - {name: lr, parameterType: double, feasibleSpace: {min: "0.01", max: "0.05"}}
  trialTemplate:
    primaryContainerName: main
    trialParameters: [{name: lr, reference: lr}]
    trialSpec:
      apiVersion: batch/v1
      kind: Job
      spec:
        template:
          spec:
            containers:
              - name: main
                image: none
                command: ["sh", "-c", "sleep 2; echo loss=$0", "${trialParameters.lr}"]
            restartPolicy: Never
"""


def run_twelve(folder: Path) -> None:
    """Print wall ÷ ideal, with and without the command's start, and the gap between an exit and the next fork."""
    file = folder / "experiment.yaml"
    file.write_text(EXPERIMENT)
    command = [sys.executable, "-m", "hpo_core.cli", "run", str(file), "--store", str(folder / "store")]
    began = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall_s = time.time() - began
    trials = folder / "store/default/overhead/trials"
    records = [json.loads(path.read_text()) for path in sorted(trials.glob("*.json"))]
    spans = sorted((_seconds(r["started"]), _seconds(r["completed"])) for r in records)
    ideal_s = sum(end - start for start, end in spans) / 3
    inner_s = max(end for _, end in spans) - min(_seconds(record["created"]) for record in records)
    print(f"trials: {len(records)}, ideal {ideal_s:.3f} s")
    print(f"wall / ideal with the command's start: {wall_s / ideal_s:.3f} ({wall_s:.3f} s)")
    print(f"wall / ideal from the first record to the last exit: {inner_s / ideal_s:.3f} ({inner_s:.3f} s)")
    ends = sorted(end for _, end in spans)
    gaps = [start - end for (start, _), end in zip(spans[3:], ends, strict=False)]
    print(f"exit to the next fork: median {statistics.median(gaps) * 1000:.0f} ms, worst {max(gaps) * 1000:.0f} ms")


def measure_supervisor(folder: Path, count: int = 20) -> None:
    """Print the time from the spawn of a supervisor to its trial's fork, and its memory."""
    delays_ms, sizes_mb = [], []
    for index in range(count):
        place = folder / str(index)
        place.mkdir()
        limits = ["0", "0", "10", "--"]
        words = [sys.executable, "-S", "-E", supervisor_program(), str(place), *limits, "sleep", "0.1"]
        spawned = time.time()
        process = subprocess.Popen(words, start_new_session=True, env={"PATH": os.environ["PATH"]})
        time.sleep(0.08)
        status = Path(f"/proc/{process.pid}/status").read_text()
        sizes_mb.append(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024)
        process.wait()
        facts = dict(line.split("=") for line in (place / "exit").read_text().split())
        delays_ms.append((float(facts["started"]) - spawned) * 1000)
    print(f"supervisor: spawn to fork median {statistics.median(delays_ms):.1f} ms, worst {max(delays_ms):.1f} ms")
    print(f"supervisor: resident at most {max(sizes_mb):.1f} MiB, the interpreter alone {_interpreter_mb():.1f} MiB")


def _interpreter_mb() -> float:
    code = "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
    out = subprocess.run([sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True, check=True).stdout
    return int(out) / 1024


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        measure_supervisor(Path(name))
        run_twelve(Path(name))
