"""Which engine is taken, and what is said where none can be."""

import logging

import pytest

from cfgdiff.runtime import Bundle, open_engine
from cfgdiff.runtime import engine as engines
from cfgdiff.runtime.errors import BadInput, Failure


def refuse(*_: object) -> None:
    raise Failure("no such device")


def test_auto_says_what_it_passed_over(packaged: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(engines, "OPENERS", {"cuda": refuse, **engines.OPENERS})
    with caplog.at_level(logging.INFO, "cfgdiff"):
        assert open_engine(packaged).name == "cpu"
    assert "cuda passed over: no such device" in caplog.text
    assert "tensorrt passed over: no TensorRT engine of precision float32" in caplog.text
    with pytest.raises(Failure, match="no such device"):  # a named engine is never replaced
        open_engine(packaged, "cuda")
    monkeypatch.setattr(engines, "OPENERS", {"cuda": refuse})
    with pytest.raises(Failure, match="no engine works here: cuda: no such device"):
        open_engine(packaged)


def test_unknown_names_list_the_choices(packaged: Bundle) -> None:
    with pytest.raises(BadInput, match="choose from auto, tensorrt, cpu; did you mean 'cpu'"):
        open_engine(packaged, "cpuu")
    with pytest.raises(BadInput, match="no 'int4' variant"):
        open_engine(packaged, precision="int4")
