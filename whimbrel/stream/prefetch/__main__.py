"""``python -m whimbrel.stream.prefetch``: see ``tool``."""

from __future__ import annotations

import sys

from whimbrel.stream.prefetch.tool import main

sys.exit(main(sys.argv[1:]))
