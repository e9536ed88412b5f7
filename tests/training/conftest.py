"""Runs of a few steps; see `small_runs`."""

import sys
from pathlib import Path

# Pytest imports tests without touching sys.path; `small_runs` lies beside them.
sys.path.append(str(Path(__file__).parent))
