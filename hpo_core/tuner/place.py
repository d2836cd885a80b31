"""Where an experiment's records are, and where this machine keeps what belongs to it."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hpo_core import images
from hpo_core.errors import Problem, SpecError
from hpo_core.experiment import Experiment
from hpo_core.launch.local import LocalLauncher, site_of
from hpo_core.lint import AUTO, KUBERNETES, LOCAL, resolve_backend
from hpo_core.objects import RecordStore, default_store, folder_of, open_objects
from hpo_core.store import ExperimentStore

if TYPE_CHECKING:
    from hpo_core.kube import Kube
    from hpo_core.launch.cluster.launcher import ClusterLauncher
    from hpo_core.launch.cluster.sidecar import Sidecar

IMAGE_VARIABLE = "HPO_IMAGE"
"""Names the engine's image, for the pods of tuners and what stands beside trials."""

OURS_IN_POD = frozenset({"containers", "restartPolicy", "serviceAccountName", "volumes"})
"""Fields of a tuner's pod that are not the user's."""

_log = logging.getLogger(__name__)


SCRATCH = ".scratch"


@dataclass(frozen=True)
class Place:
    """Where an experiment's records, images and scratch files lie.

    Attributes:
        uri: The store's address, absolute.
        directory: Working directory of local trials whose image is no local image, absolute.
        backend: Where trials run, `local` or `kubernetes`.
        pod: How the pod of a tuner in a cluster is to be: `image`, `service_account`, `fields`, as `TunerPod` has them.
    """

    uri: str
    directory: str
    backend: str = LOCAL
    pod: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        store: str,
        directory: str | Path = ".",
        backend: str = AUTO,
        pod: Mapping[str, Any] = MappingProxyType({}),
    ) -> Place:
        """Make the place of a store's address as a user gave it.

        Args:
            store: A directory or `s3://BUCKET/PREFIX`; "" for the usual one, see `default_store`.
            directory: Working directory of local trials whose image is no local image.
            backend: Where trials run.
            pod: How the pod of a tuner in a cluster is to be.

        Raises:
            StoreError, TransientError: The usual store is meant and cannot be found out.
        """
        store = store or default_store()
        uri = store if "://" in store else str(Path(store).absolute())
        return cls(uri, str(Path(directory).absolute()), resolve_backend(backend), dict(pod))

    @functools.cached_property
    def objects(self) -> RecordStore:
        """The object store.

        Raises:
            StoreError: There is no store of that address, or its credentials are missing.
            TransientError: The cluster cannot be asked for them now.
        """
        return open_objects(self.uri)

    @property
    def home(self) -> Path:
        """The folder of this machine for what cannot be elsewhere: images, scratch files, tuners' logs.

        It is the store's own where that is a folder; else one in the user's state folder that belongs to the store's
        address alone, so that a tuner that is started from any directory finds the trials of an earlier one.
        """
        folder = folder_of(self.uri)
        if folder is not None:
            return folder
        digest = hashlib.sha256(self.uri.encode()).hexdigest()[:8]
        return _state_folder() / f"{re.sub('[^A-Za-z0-9.-]+', '-', self.uri.partition('://')[2])[:40]}-{digest}"

    @property
    def site(self) -> str:
        """Where trials run, as their launcher calls it; only a tuner of the same site can find them again."""
        return "" if self.backend == KUBERNETES else site_of(self.home / SCRATCH)

    @property
    def images_root(self) -> Path:
        """Where local images lie."""
        return images.images_root(self.home)

    def store(self, namespace: str, name: str) -> ExperimentStore:
        """The records of one experiment."""
        return ExperimentStore(self.objects, namespace, name)

    def tuner_log(self, namespace: str, name: str) -> Path:
        """Where a background tuner writes what it has to say."""
        return self.home / namespace / name / "tuner.log"

    def launcher(self, experiment: Experiment, *, parallel: int) -> LocalLauncher | ClusterLauncher:
        """A launcher that finds again what an earlier one started for this experiment.

        Raises:
            LaunchError: No cluster is known here.
        """
        if self.backend == KUBERNETES:
            # Imported here: the Kubernetes client is dear, and local trials need none.
            from hpo_core.launch.cluster.launcher import ClusterLauncher

            return ClusterLauncher(self.kube(experiment), experiment, self._sidecar())
        return LocalLauncher(
            self.home / SCRATCH / experiment.uid,
            images_root=self.images_root,
            directory=Path(self.directory),
            parallel=parallel,
        )

    def _sidecar(self) -> Sidecar | None:
        """What keeps the outputs of trials in a cluster; None where the engine's image is not known."""
        from hpo_core.launch.cluster.sidecar import Sidecar
        from hpo_core.tuner.pod_store import sidecar_environment

        image = str(self.pod.get("image") or os.environ.get(IMAGE_VARIABLE) or "")
        if not image:
            _log.warning("output.not_kept reason=%s names no image of the engine", IMAGE_VARIABLE)
            return None
        return Sidecar(image, self.uri, sidecar_environment(self.uri))

    def kube(self, experiment: Experiment) -> Kube:
        """The cluster that an experiment's trials run in.

        Raises:
            LaunchError: No cluster is known here.
        """
        from hpo_core.kube import Kube

        return Kube.connect(namespace=experiment.namespace)


@dataclass(frozen=True)
class Handle:
    """A launched experiment, as one step of a pipeline tells the next."""

    namespace: str
    name: str
    store: str
    backend: str
    spec_hash: str
    run_id: str = ""

    def to_json(self) -> str:
        """Write it as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Handle:
        """Read it from JSON text.

        Raises:
            SpecError: The text is no handle.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            message = f"is no handle of an experiment: {error}; give the output `handle` of the launch step"
            raise SpecError([Problem("handle", message)]) from error


def launched_place(store: ExperimentStore, place: Place) -> Place:
    """Return the place as the experiment was launched: its backend, and its directory if that is still there."""
    told = store.derived_json("launch.json")
    directory = str(told.get("directory") or "")
    return replace(
        place,
        directory=directory if directory and Path(directory).is_dir() else place.directory,
        backend=str(told.get("backend") or place.backend),
        pod=place.pod or told.get("pod") or {},
    )


def _state_folder() -> Path:
    """The user's folder for what programs keep on this machine, as the XDG specification has it."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    except RuntimeError:  # a user without a home, as in many a container
        return Path(tempfile.gettempdir()) / f"kfp-hpo-{os.getuid()}"
    return state / "kfp-hpo"
