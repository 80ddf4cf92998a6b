"""Rows are counted as the networks compute them, in a cascade for each network."""

import numpy as np
from fakes import Halves
from stages import STEPS

from cfgdiff.runtime import Bundle, draw, open_engine
from cfgdiff.runtime.counting import CountingEngine, counting


def test_rows_are_counted(packaged: Bundle) -> None:
    engine = CountingEngine(Halves(), packaged)
    for b, g in ((5, 3), (2, 0)):
        engine.predict(*(np.zeros(shape, np.float32) for shape in ((b, 3, 2, 2), b, b, g)))
    assert engine.rows == 10


def test_each_network_of_a_cascade_has_a_count(cascade: Bundle) -> None:
    with open_engine(cascade, "cpu", "float32", threads=1) as opened:
        plain = draw(cascade, ["a", "b"], opened)
        engine, counters = counting(cascade, opened)
        assert np.array_equal(draw(cascade, ["a", "b"], engine), plain)
    base, *stages = (counter.rows for counter in counters)
    assert stages == [2 * 2 * steps for steps in STEPS[1:]]  # guided, so two rows an evaluation
    assert base == 2 * 2 * STEPS[0] - 2  # in the first evaluation, beyond its interval, one
    one, (counter,) = counting(cascade.models[0], opened.engine)
    assert one is counter
