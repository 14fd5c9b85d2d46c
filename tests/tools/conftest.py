"""The toys of the trainer's tests serve here too."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "trainer"), str(Path(__file__).resolve().parent)]
