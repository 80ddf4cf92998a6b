"""An engine around another one has its name and limits, and its own way to predict."""

from types import SimpleNamespace

import numpy as np

from cfgdiff.runtime.wrapped import Wrapped


def test_it_is_the_other_engine_but_for_predict_and_close() -> None:
    closed: list[int] = []
    inside = SimpleNamespace(name="cpu", precision="int8", max_batch=7, predict=None, close=lambda: closed.append(1))
    engine = Wrapped(inside, lambda sample, timestep, class_label, guidance: sample + len(guidance))
    assert (engine.name, engine.precision, engine.max_batch) == ("cpu", "int8", 7)
    assert engine.predict(np.ones(2), np.zeros(2), np.zeros(2), np.zeros(1)).tolist() == [2, 2]
    engine.close()
    assert not closed
