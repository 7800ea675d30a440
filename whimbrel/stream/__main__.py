"""``python -m whimbrel.stream [--supervise [--detach]] CONFIG.json``: see ``process`` and ``supervise``."""

from __future__ import annotations

import sys

from whimbrel.stream.process import main

sys.exit(main(sys.argv[1:]))
