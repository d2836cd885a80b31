"""kfp warns at import and of things that are no concern here; our own warnings stay errors."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kfp  # noqa: F401  imported here once, so that no test meets its import-time warnings
