"""The classification accuracy score (Ravuri & Vinyals 2019): the accuracy, on real pictures, of a classifier trained on
generated ones.

It drops where a model leaves out a part of a class or mixes classes, which distances between features may not show.
Beside it stand the same classifier trained on as many real pictures, and trained on both. Each is deterministic by its
seed, and kept in the cache.
"""

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cfgdiff.runtime.cache import cache_folder
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import write_whole

from .blocks import Watch
from .subject import Figure, Subject

if TYPE_CHECKING:
    from cfgdiff.trainer.data import PictureSet

EPOCHS = 8.0  # 4 N pictures each: for N = 5000 a minute and a half on two cores in bfloat16, three in float32
SEED = 0


def classification_accuracy_score(subject: Subject) -> dict[str, Figure]:
    """Accuracies on the held-out pictures after training on N samples, on N real pictures, and on both.

    Raises:
        Failure: PyTorch is not installed, no pictures are held out, or the cache cannot be written.
    """
    data = subject.data
    if data is None or not subject.cas_n:
        return {}
    from cfgdiff.trainer.data import batch_indices

    if not len(data.test_labels):
        raise Failure(f"{data.name}: no pictures are held out to test a classifier on")
    n = min(subject.cas_n, len(data.labels))
    samples = subject.draw(subject.settings, n, "samples, for the classifier")
    chosen = batch_indices(len(data.labels), 0, n, SEED)
    real = replace(data, pictures=data.pictures[chosen], labels=data.labels[chosen])
    generated = replace(
        data, pictures=np.ascontiguousarray(samples.pictures.transpose(0, 3, 1, 2)), labels=samples.labels
    )
    both = replace(data, pictures=np.concatenate([real.pictures, generated.pictures]),
                   labels=np.concatenate([real.labels, generated.labels]))  # fmt: skip
    with subject.stage("classifiers", round(EPOCHS * 4 * n)) as watch:
        of_generated, of_real, of_both = (
            accuracy_after(pictures, subject.threads, watch) for pictures in (generated, real, both)
        )
    name = f"classification accuracy score, N = {n}"
    return {
        "cas": Figure(name, [of_generated], of_real),
        "cas_both": Figure(f"{name} real and N generated pictures", [of_both]),
    }


def accuracy_after(data: "PictureSet", threads: int | None, watch: Watch) -> float:
    """The accuracy on held-out pictures of a classifier trained on the others. `watch` gets the pictures of each
    step."""
    try:
        import torch

        from . import classifier
    except ImportError as error:
        raise Failure(f"{error.name} is not installed; pip install 'cfgdiff[train]'") from None
    low = classifier.bfloat16_is_fast()
    digest = hashlib.blake2b(
        repr((classifier.WIDTHS, classifier.OPTIMISER, EPOCHS, SEED, low)).encode(), digest_size=16
    )
    for array in (data.pictures, data.labels, data.test_pictures, data.test_labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    file = cache_folder() / "classifiers" / f"{digest.hexdigest()}.json"
    if file.is_file():
        watch(round(EPOCHS * len(data.labels)))
        return float(json.loads(file.read_text()))
    if threads:
        torch.set_num_threads(threads)
    network = classifier.train(data, EPOCHS, SEED, watch, low)
    accuracy = classifier.accuracy(network, data.test_pictures, data.test_labels)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"{file.parent}: cannot be made ({error.strerror}); set XDG_CACHE_HOME to another disk") from None
    write_whole(file, json.dumps(accuracy).encode())
    return accuracy
