"""Trials as objects of a Kubernetes namespace.

`launcher` asks the API server and takes in what its streams tell; `followed` decides what has become of one workload,
with the words of `endings`, for how pods ended, and of `diagnosis`, for what keeps them from running or ending. `logs`
reads what they print, `dress` adds what a workload needs in a cluster to what its template says, with a `sidecar` that
keeps its output, and `kinds` knows what is peculiar to single kinds. `check` tells before anything is started what a
cluster could not do with a document, and `permissions` what the tuner may not do there.
"""
