"""The features that pictures are compared by: Inception's, or stated substitutes where its weights are not available;
and classifiers.

Only distances in Inception's features carry the field's names (FID, KID, Inception Score). Those in the pooled features
of AlexNet or of a classifier have plain names: they compare with nothing outside the same report.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.cache import cache_folder
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import partial_file, remove_abandoned

from .alexnet import Weights, find_weights, open_vectors, pooled, weights_digest

PACKAGED = Path(__file__).parent / "classifiers" / "cifar10.onnx"
INCEPTION = "inception-v3-compat"  # torch-fidelity's name for the network of the original FID, with its own resize
KINDS = ("auto", "inception", "alexnet", "classifier")
AT_ONCE, ROWS = 256, 2048


@dataclass(frozen=True)
class Extractor:
    """A space of features.

    Attributes:
        name: the network and the layer, as a report states it.
        sha256: of its weights.
        inception: whether distances in it have the field's names.
        extract: pictures (N, H, W, 3) uint8, see `rgb` -> features (N, F) and logits (N, K), float32; K is 0 for a
            network without classes, F, too, where there is no network at all.
        empty: whether that is so.
    """

    name: str
    sha256: str
    inception: bool
    extract: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    empty: bool = False


@dataclass(frozen=True)
class Classifier:
    """A network of `cfgdiff classifier train`.

    Attributes:
        class_names: K of them.
        accuracy: the share of held-out pictures that it gets right, 0 .. 1; None where there were none.
        image_shape: (C, H, W) of the pictures it was trained on.
        sha256: of its file.
        classify: pictures (N, H, W, C) uint8 -> features (N, F), logits (N, K), float32.
    """

    class_names: list[str]
    accuracy: float | None
    image_shape: tuple[int, int, int]
    sha256: str
    classify: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def rgb(pictures: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 -> (N, H, W, 3): grey ones three times over."""
    return pictures.repeat(3, axis=3) if pictures.shape[3] == 1 else pictures


def open_classifier(path: Path, threads: int | None = None) -> Classifier:
    """Read a classifier. Raises `Failure` for any other file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    try:
        data = path.read_bytes()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
        class_names, accuracy, shape = (
            metadata["class_names"],
            metadata["accuracy"],
            tuple(session.get_inputs()[0].shape[1:]),
        )
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise Failure(
            f"--classifier: {path}: not readable as a classifier ({str(error).splitlines()[0]}); "
            "train one with cfgdiff classifier train DATA --out FILE"
        ) from None

    def classify(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for first in range(0, len(pictures), AT_ONCE):
            part = (
                np.ascontiguousarray(pictures[first : first + AT_ONCE].transpose(0, 3, 1, 2), np.float32)
                / np.float32(127.5)
                - 1
            )
            parts.append(session.run(["features", "logits"], {"pictures": part}))
        return np.concatenate([features for features, _ in parts]), np.concatenate([logits for _, logits in parts])

    return Classifier(class_names, accuracy, shape, hashlib.sha256(data).hexdigest(), classify)


def find_classifier(bundle: Bundle, path: Path | None, threads: int | None = None) -> tuple[Classifier | None, str]:
    """The classifier in the file, or the packaged one where it has the bundle's classes and pictures; else None, and
    the reason in a line.

    Raises:
        Failure: the file is no classifier, or one of other classes.
    """
    classifier = open_classifier(path or PACKAGED, threads)
    if (classifier.class_names, classifier.image_shape) == (bundle.class_names, bundle.picture_shape):
        return classifier, ""
    if path is not None:
        raise Failure(
            f"--classifier {path}: is of {classifier.image_shape} pictures of {', '.join(classifier.class_names)}; "
            f"expected {bundle.picture_shape} of {', '.join(bundle.class_names)}"
        )
    return (
        None,
        "No class accuracy: no classifier of these classes; train one with cfgdiff classifier train DATA --out FILE.",
    )


def classifier_features(classifier: Classifier) -> Extractor:
    """The classifier's last features before its linear layer."""
    return Extractor(
        f"classifier of {len(classifier.class_names)} classes, last features",
        classifier.sha256,
        False,
        classifier.classify,
    )


def alexnet_features(weights: Weights, threads: int | None = None) -> Extractor:
    """AlexNet's last convolution, pooled."""
    vectors = open_vectors(pooled(weights), threads)

    def extract(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return vectors(pictures), np.zeros((len(pictures), 0), np.float32)

    return Extractor("AlexNet, conv5 pooled, at 64x64", weights_digest(weights), False, extract)


def inception_features() -> Extractor:
    """Inception's pool3 features and logits, by torch-fidelity, which fetches the weights once.

    Raises:
        Failure: torch-fidelity is not installed, or the weights are neither here nor can be fetched.
    """
    try:
        import torch
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise Failure(f"--features inception: {error.name} is not installed; pip install 'cfgdiff[train]'") from None
    try:
        network = FeatureExtractorInceptionV3(INCEPTION, ["2048", "logits_unbiased"])
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        raise Failure(
            f"--features inception: its weights cannot be fetched ({error}); connect once, or take another kind"
        ) from None
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    network.to(device := "cuda" if torch.cuda.is_available() else "cpu")

    def extract(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for first in range(0, len(pictures), 64):
            part = torch.from_numpy(np.ascontiguousarray(pictures[first : first + 64].transpose(0, 3, 1, 2)))
            with torch.no_grad():
                parts.append([output.cpu().numpy() for output in network(part.to(device))])
        return np.concatenate([features for features, _ in parts]), np.concatenate([logits for _, logits in parts])

    return Extractor("Inception v3 (TensorFlow's of 2015), pool3", digest.hexdigest(), True, extract)


def kept(
    pictures: np.ndarray,
    vectors: Callable[[np.ndarray], np.ndarray],
    key: str,
    watch: Callable[[int], object] = lambda n: None,
) -> np.ndarray:
    """The vectors (N, F) float32 of pictures (N, C, H, W) uint8, kept in the cache under the pictures' digest and
    `key`, the network's.

    `watch` gets the number of pictures of each part.

    Raises:
        Failure: the cache cannot be written.
    """
    digest = hashlib.blake2b(np.ascontiguousarray(pictures).tobytes(), digest_size=16)
    digest.update(key.encode())
    file = cache_folder() / "features" / f"{digest.hexdigest()}.npy"
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(file)
            with partial_file(file) as partial:
                target = None
                for first in range(0, len(pictures), ROWS):
                    part = vectors(pictures[first : first + ROWS].transpose(0, 2, 3, 1))
                    if target is None:
                        target = np.lib.format.open_memmap(
                            partial.name, "w+", np.float32, (len(pictures), part.shape[1])
                        )
                    target[first : first + len(part)] = part
                    watch(len(part))
                del target
        except OSError as error:
            reason = error.strerror or error
            raise Failure(
                f"{file}: cannot keep the features of pictures ({reason}); make room, or set XDG_CACHE_HOME"
            ) from None
    vectors_of_all: np.ndarray = np.load(file, mmap_mode="r")
    return vectors_of_all


def no_features() -> Extractor:
    """No features: samples, interpolations and class accuracy need none."""

    def extract(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(pictures), 0), np.float32), np.zeros((len(pictures), 0), np.float32)

    return Extractor("none", "", False, extract, empty=True)


def choose_features(kind: str, alexnet: Weights | None, classifier: Classifier | None,
                    threads: int | None = None) -> tuple[Extractor, str]:  # fmt: skip
    """The extractor of that kind, and a note where it stands in for Inception.

    Args:
        kind: "auto" is Inception where it is available, then AlexNet, then the classifier.
        alexnet: its weights; None where they are not available.

    Raises:
        Failure: it is not available; for "auto": none is.
    """
    if kind == "inception":
        return inception_features(), ""
    if kind == "alexnet":
        if alexnet is None:
            raise Failure("--features alexnet: its weights are not available; give --alexnet FILE")
        return alexnet_features(alexnet, threads), ""
    if kind == "classifier":
        if classifier is None:
            raise Failure("--features classifier: no classifier of these classes; train one (see --classifier)")
        return classifier_features(classifier), ""
    reasons = []
    for wanted in KINDS[1:]:
        try:
            extractor, _ = choose_features(wanted, alexnet, classifier, threads)
        except Failure as error:
            reasons.append(str(error))
        else:
            note = (
                f"{reasons[0]}. In place of Inception: {extractor.name}; no distance here is FID or KID."
                if reasons
                else ""
            )
            return extractor, note
    raise Failure(f"--features: none available: {'; '.join(reasons)}")


def choose_judges(
    bundle: Bundle, kind: str, alexnet: Path | None, classifier: Path | None, threads: int | None = None
) -> tuple[Classifier | None, Extractor, Weights | None, list[str]]:
    """The classifier, the extractor of that kind and AlexNet's weights, and notes about those that are not available.

    Where no features are available for "auto", the extractor is that of `no_features`.

    Raises:
        Failure: a given file is not as expected, or features of the named kind are not available.
    """
    judge, no_classifier = find_classifier(bundle, classifier, threads)
    weights, no_weights = None, ""
    try:
        weights = find_weights(alexnet)
    except Failure as error:
        if alexnet is not None:
            raise
        no_weights = f"No nearest neighbours. {error}."
    try:
        extractor, no_inception = choose_features(kind, weights, judge, threads)
    except Failure as error:
        if kind != "auto":
            raise
        extractor, no_inception = no_features(), f"No distances and no sweep. {error}."
    return judge, extractor, weights, [note for note in (no_classifier, no_weights, no_inception) if note]
