"""Processors as Linux describes them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cfgdiff.runtime import processor as module
from cfgdiff.runtime.processor import processor

X86 = "processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu avx2 amx_bf16 avx512f\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd i8mm\nCPU part\t: 0xd40\n"


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    processor.cache_clear()
    yield
    processor.cache_clear()


@pytest.mark.parametrize(
    ("text", "notable"), [(X86, ("avx2", "avx512f", "amx_bf16")), (ARM, ("asimd", "i8mm")), ("", ())]
)
def test_instructions_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, notable: tuple[str, ...]
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    found = processor()
    assert found.notable == notable and (found.name == "Some Xeon") == (text == X86)


def test_elsewhere_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert processor() == module.Processor("arm", frozenset())
