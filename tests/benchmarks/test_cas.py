"""The classification accuracy score: high for samples that show their class, low for others, the same again, and from
the cache."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks import cas, classifier
from cfgdiff.benchmarks.blocks import Measured
from cfgdiff.benchmarks.cas import classification_accuracy_score
from cfgdiff.benchmarks.subject import Subject
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.data import PictureSet


def coloured(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 16, 16) noise, brighter in the channel of its class, and the classes."""
    pictures, labels = np.random.default_rng(seed).integers(0, 160, (n, 3, 16, 16), dtype=np.uint8), np.arange(n) % 3
    pictures[np.arange(n), labels] += 90
    return pictures, labels


def subject_of(pictures: np.ndarray, cas_n: int, held_out: int = 60) -> Subject:
    """Samples beside 90 real pictures."""
    tests = tuple(array[:held_out] for array in coloured(60, 2))
    data = PictureSet("squares", ["a", "b", "c"], *coloured(90, 1), *tests)
    none, labels = np.zeros((len(pictures), 0), np.float32), np.arange(len(pictures)) % 3
    every = Measured(pictures.transpose(0, 2, 3, 1), labels, none, none, none)

    def read(settings: object, n: int) -> Measured:
        return Measured(*(array[:n] for array in vars(every).values()))

    sampling = SimpleNamespace(missing=lambda *_: [], fill=lambda *_: None, read=read, evaluations=lambda _: 1)
    stage = lambda label, length: nullcontext(lambda done: None)  # noqa: E731
    return Subject(sampling, None, 32, stage, data=data, cas_n=cas_n)  # type: ignore[arg-type]


def test_samples_that_show_their_class_score_as_real_pictures_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cas, "EPOCHS", 32.0)  # of one step each
    good, _ = coloured(90, 3)
    figures = classification_accuracy_score(subject_of(good, 90))
    assert figures["cas"].values[0] > 0.9 and figures["cas"].real is not None and figures["cas"].real > 0.9
    assert figures["cas_both"].values[0] > 0.9 and figures["cas_both"].real is None
    assert figures["cas"].name == "classification accuracy score, N = 90"
    mixed = classification_accuracy_score(
        subject_of(np.roll(good, 1, axis=1), 90)
    )  # each shows the class after its own
    assert mixed["cas"].values[0] < 0.1 and mixed["cas"].real == figures["cas"].real
    monkeypatch.setattr(classifier, "train", None)
    assert classification_accuracy_score(subject_of(good, 90)) == figures  # from the cache


def test_training_is_deterministic_and_n_is_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(cas, "EPOCHS", 1.0)
    samples = np.random.default_rng(4).integers(0, 256, (200, 3, 16, 16), dtype=np.uint8)
    figures = []
    for name in ("first", "second"):
        monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/{name}")
        figures.append(classification_accuracy_score(subject_of(samples, 200)))
    assert figures[0] == figures[1] and str(figures[0]["cas"].name).endswith("N = 90")


def test_without_what_it_needs_there_is_none_or_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, _ = coloured(30, 3)
    assert classification_accuracy_score(subject_of(samples, 0)) == {}
    with pytest.raises(Failure, match=r"^squares: no pictures are held out to test a classifier on$"):
        classification_accuracy_score(subject_of(samples, 30, held_out=0))
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(Failure, match=r"^torch is not installed; pip install 'cfgdiff\[train\]'$"):
        classification_accuracy_score(subject_of(samples, 30))


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "Classifier", partial(classifier.Classifier, widths=(16, 32)))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_products_are_in_the_precision_asked_for(bfloat16: bool) -> None:
    import torch

    seen = list[torch.dtype]()
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, out: seen.append(out.dtype) if isinstance(module, torch.nn.Conv2d) else None
    )
    pictures, labels = coloured(12, 0)
    try:
        network = classifier.train(
            PictureSet("x", ["a", "b", "c"], pictures, labels, pictures[:0], labels[:0]), 1, bfloat16=bfloat16
        )
    finally:
        handle.remove()
    assert set(seen) == {torch.bfloat16 if bfloat16 else torch.float32}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
