"""Trials as objects of a Kubernetes namespace.

`launcher` follows them and decides, `diagnosis` finds the words for what keeps one from running or how it ended, `logs`
reads what it prints, `dress` adds what it needs in a cluster to what its template says.
"""

from hpo_core.launch.cluster.launcher import ClusterLauncher

__all__ = ["ClusterLauncher"]
