"""Options that several commands share: what they say of themselves is so."""

from __future__ import annotations

import re

from gennode.cli.options import CODEC_HELP, CODECS
from gennode.wire.activations import NAMES, codec


def test_the_help_tells_each_codecs_bytes_per_number() -> None:
    told = dict(re.findall(r"([a-z0-9-]+) (\d\.\d+|\d)\b", CODEC_HELP))
    assert set(told) == set(NAMES) == set(CODECS)
    for name in NAMES:
        decimals = len(told[name].partition(".")[2])
        assert round(codec(name).row_bytes(4096) / 4096, decimals) == float(told[name])
