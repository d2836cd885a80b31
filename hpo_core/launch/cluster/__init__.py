"""Trials as objects of a Kubernetes namespace.

`launcher` follows them and decides, `diagnosis` finds the words for what keeps one from running or how it ended, `logs`
reads what it prints, `dress` adds what it needs in a cluster to what its template says, `check` tells before anything
is started what a cluster could not do with a document.
"""
