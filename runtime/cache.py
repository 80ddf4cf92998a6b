"""Where this user's cache is. What is kept there can be made again: nothing may depend on it."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads, decoded pictures and measurements are kept: $XDG_CACHE_HOME/cfgdiff, by default ~/.cache/cfgdiff."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfgdiff"
