"""What all tests share: quiet tools, no network but this machine, one thread."""

import os
import signal

from hypothesis import HealthCheck, settings

# before torch is imported by any test module
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

# where a shell has started the tests in the background it is ignored, and would be in all their children
signal.signal(signal.SIGINT, signal.default_int_handler)

# an example may take as long as a busy machine needs
settings.register_profile(
    "lowcomm", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lowcomm")
