"""All of this needs what training needs."""

import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
