"""The folder of this user's cache. Everything in it can be made again: nothing may depend on it."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/cfgdiff, by default ~/.cache/cfgdiff: for downloads, decoded pictures and measurements."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfgdiff"
