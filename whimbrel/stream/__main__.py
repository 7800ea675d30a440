"""``python -m whimbrel.stream CONFIG.json``: see ``process``."""

from __future__ import annotations

import sys

from whimbrel.stream.process import main

sys.exit(main(sys.argv[1:]))
