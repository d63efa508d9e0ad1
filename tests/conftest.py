"""What every test runs under: no network, no settings from outside, repeatable chance."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Before anything imports torch or a tokenizer: two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
for _name in [name for name in os.environ if name.startswith("GENNODE_")]:
    del os.environ[_name]

# A busy machine is no reason to fail: Hypothesis gets no deadline, pytest has one.
settings.register_profile(
    "local", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")
