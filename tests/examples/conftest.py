"""Where the tests' shared modules lie."""

from __future__ import annotations

import sys
from pathlib import Path

# Pytest imports tests without touching sys.path.
sys.path.insert(0, str(Path(__file__).parents[1]))
