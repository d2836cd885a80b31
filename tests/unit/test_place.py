"""Where an experiment is, on this machine and elsewhere."""

from dataclasses import replace
from pathlib import Path

from hpo_core.tuner import Place
from tests.experiments import make_experiment


def test_who_takes_the_lease_names_the_site_of_its_launcher(tmp_path: Path) -> None:
    """By it a tuner that was taken over knows whether its trials are followed, and must be left running."""
    place = Place.of(str(tmp_path / "store"))
    accepted = replace(make_experiment(), uid="1" * 32)
    assert place.site == place.launcher(accepted, parallel=1).site
