"""The real data sets, where they are at hand: ``FLOWRL_REAL_DATA``, or ``../shared/data`` beside the checkout."""

import os
from pathlib import Path

import pytest

from recipe.flowrl.common.project import PROJECT

REAL_DATA = Path(os.environ.get("FLOWRL_REAL_DATA") or PROJECT.parent / "shared" / "data")

needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"the real data sets aren't in {REAL_DATA}")
