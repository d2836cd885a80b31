"""A wall clock that is wrong, for processes of a test: a library before libc's, which shifts what time it is.

What only grows, as the monotonic clock, is as it was; so it is with a machine whose time was set wrongly. By such a
clock the certificates of a cluster that was just made are not valid yet, so the API server is not asked for any.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static time_t ahead(void) {
  const char *told = getenv("TEST_CLOCK_AHEAD_S");
  return told ? atol(told) : 0;
}

int clock_gettime(clockid_t which, struct timespec *now) {
  static int (*libc)(clockid_t, struct timespec *);
  if (!libc) libc = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = libc(which, now);
  if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
  return failed;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  out->tv_sec = now.tv_sec;
  out->tv_usec = now.tv_nsec / 1000;
  return 0;
}
"""


def skewed(folder: Path, ahead_s: int) -> Mapping[str, str]:
    """The environment of a process whose clock is ahead by so many seconds; skips the test where no compiler is."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: what a wrong clock does to a run is unproven")
    source, library = folder / "skew.c", folder / "skew.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, capture_output=True)
    return {"LD_PRELOAD": str(library), "TEST_CLOCK_AHEAD_S": str(ahead_s), **_trusting(folder)}


def _trusting(folder: Path) -> Mapping[str, str]:
    """A kubeconfig as the one there is, but for which every certificate is good; none where none is named."""
    if not os.environ.get("KUBECONFIG"):
        return {}
    view = ["kubectl", "config", "view", "--raw", "--flatten", "-o", "json"]
    told = json.loads(subprocess.run(view, check=True, capture_output=True, timeout=60).stdout)
    for entry in told["clusters"]:
        entry["cluster"].pop("certificate-authority-data", None)
        entry["cluster"]["insecure-skip-tls-verify"] = True
    path = folder / "kubeconfig.json"
    path.write_text(json.dumps(told))
    return {"KUBECONFIG": str(path)}
