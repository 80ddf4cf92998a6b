"""What is added to bundle.json later is there afterwards, and nothing else changed."""

import json
from pathlib import Path

from cfgdiff.export.description import store_certificate, store_fitted, store_speeds
from cfgdiff.runtime import load_bundle
from cfgdiff.runtime.bundle import SpeedRecord
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.fitted import Fitted


def test_fitted_steps_and_certificates_are_added(copied: Path) -> None:
    before, bundle = json.loads((copied / "bundle.json").read_bytes()), load_bundle(copied)
    one, two = (Fitted((900.0, 20.0, 0.0), ((1.0, 2.0, c, 0.0), (0.1, 0.2, 0.3, 0.4)), 3.0) for c in (0.5, 0.7))
    store_fitted(bundle, {12: one, 2: one})
    store_fitted(bundle, {2: two})
    store_certificate(bundle, "float32", Certificate(True, "0" * 64))
    found = load_bundle(copied)
    kept = {n: fitted for n, fitted in found.fitted.items() if n in (2, 12)}
    assert kept == {2: two, 12: one} and list(found.fitted) == sorted(found.fitted)
    after = json.loads((copied / "bundle.json").read_bytes())
    assert after["variants"]["float32"].pop("certificate") == Certificate(True, "0" * 64).to_json()
    before["variants"]["float32"].pop("certificate", None)
    assert {k: v for k, v in after.items() if k != "fitted"} == {k: v for k, v in before.items() if k != "fitted"}
    assert [p.name for p in copied.iterdir() if "partial" in p.name] == []


def test_speeds_take_the_place_of_those_of_such_a_processor(copied: Path) -> None:
    bundle = load_bundle(copied)
    measured = bundle.speeds
    old, other = (SpeedRecord(("avx2",), threads, "openvino", "bfloat16", 2.0) for threads in (2, 4))
    new = [SpeedRecord(("avx2",), 2, "openvino", precision, 3.0) for precision in ("bfloat16", "int8")]
    for records in ([old], [other], new):
        store_speeds(bundle, records)
    assert load_bundle(copied).speeds == (*measured, other, *new)
