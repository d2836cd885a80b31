"""What Kubeflow Pipelines puts before a component's command in its pod, in small: Argo's first process, the launcher.

It is sent into a pod as text, `python3 -c TEXT EXECUTOR_INPUT COMMAND…`, and uses nothing but the image's `minio`. It
does as the originals do: the first process hands signals on to the group of the launcher and looks once a second
whether that one has ended, and with it the container ends, whatever else runs; the launcher dies of SIGTERM at once.
The launcher makes the folders of the outputs, runs the command, and uploads the artifacts of one that succeeded. What
the command has put out is the pod's last word.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LOOK_S = 1.0
"""How often Argo's first process looks whether its child has ended."""
STORE = "LAUNCHER_STORE"
"""Where artifacts go, as JSON; the component does not see it."""


def main(executor_input: str, command: Sequence[str]) -> int:
    """Be the first process; returns the exit code of the launcher."""
    store = json.loads(os.environ.pop(STORE))
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os._exit(launch(json.loads(executor_input)["outputs"], command, store))

    def hand_on(number: int, frame: object) -> None:  # noqa: ARG001  the signature is the interpreter's
        os.killpg(child, number)

    signal.signal(signal.SIGTERM, hand_on)
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == child:
            return abs(os.waitstatus_to_exitcode(status))
        if ended == 0:
            time.sleep(LOOK_S)


def launch(outputs: Mapping[str, Any], command: Sequence[str], store: Mapping[str, str]) -> int:
    """Be the launcher; returns the exit code of the command."""
    output_file = Path(outputs["outputFile"])
    for parameter in outputs["parameters"].values():
        Path(parameter["outputFile"]).parent.mkdir(parents=True, exist_ok=True)
    places = [path_of(artifact["uri"]) for named in outputs["artifacts"].values() for artifact in named["artifacts"]]
    for place in [output_file, *places]:
        place.parent.mkdir(parents=True, exist_ok=True)
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        for place in places:
            upload(place, store)
        Path("/dev/termination-log").write_text(output_file.read_text() if output_file.exists() else "{}")
    return code


def path_of(uri: str) -> Path:
    """Where an artifact lies in the pod."""
    return Path("/") / uri.replace("://", "/", 1)


def upload(place: Path, store: Mapping[str, str]) -> None:
    """Bring an artifact, a file or a folder, to the bucket that its path names."""
    from minio import Minio

    server = Minio(store["endpoint"], store["access_key"], store["secret_key"], secure=False)
    for file in files(place):
        _, _, bucket, *key = file.parts
        server.fput_object(bucket, "/".join(key), str(file))


def files(place: Path) -> Iterator[Path]:
    """All files of an artifact; none of one that was not written."""
    yield from [place] if place.is_file() else (path for path in place.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
