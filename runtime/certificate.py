"""A certificate: what `cfgdiff verify` or an export measured of a graph or an engine, and whether it passed.

export/verify.py makes them; bundle.json and the sidecars of built engines hold them.
"""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Certificate:
    """The comparison of an engine with float32 on ONNX Runtime.

    Attributes:
        passed: every measure is within its limit.
        sha256: of the graph or the built engine that was compared.
        engine: the name of the engine that ran it.
        failures: the measures outside their limits, in words.
        limits: by measure; None allows any value.
        rows: relative error of the engine's answers against each other, by check.
        prediction: largest relative error of predictions, by noise level ln(sigma / alpha), as "+1".
        x0: the same of the clean pictures that they imply.
        pictures: how many were compared; 0 where a failure came before.
        psnr_db: of these pictures to float32's; None where there are none.
        features: their distance to float32's, as a share of that between unrelated pictures; None where there are none.
    """

    passed: bool
    sha256: str = ""
    engine: str = ""
    failures: tuple[str, ...] = ()
    limits: dict[str, float | None] = field(default_factory=dict)
    rows: dict[str, float] = field(default_factory=dict)
    prediction: dict[str, float] = field(default_factory=dict)
    x0: dict[str, float] = field(default_factory=dict)
    pictures: int = 0
    psnr_db: float | None = None
    features: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry of bundle.json or a sidecar."""
        tree = asdict(self) | {"failures": list(self.failures)}
        measures = ("rows", "prediction", "x0", *(("pictures", "psnr_db", "features") if self.pictures else ()))
        heads = {key: tree[key] for key in ("engine", "passed", "failures", "limits")}
        return heads | {"found": {key: tree[key] for key in measures}, "sha256": self.sha256}


def parse_certificate(tree: Any) -> Certificate | None:
    """The inverse of `Certificate.to_json`; None for None. Raises one of `DAMAGE` for what is no certificate."""
    if tree is None:
        return None
    measures = tree.get("found", {})
    certificate = Certificate(
        passed=tree["passed"],
        sha256=tree.get("sha256", ""),
        engine=tree.get("engine", ""),
        failures=tuple(tree.get("failures", ())),
        limits=dict(tree.get("limits", {})),
        **{key: dict(measures.get(key, {})) for key in ("rows", "prediction", "x0")},
        pictures=measures.get("pictures", 0),
        psnr_db=measures.get("psnr_db"),
        features=measures.get("features"),
    )
    texts = (certificate.sha256, certificate.engine, *certificate.failures)
    errors = (*certificate.rows.values(), *certificate.prediction.values(), *certificate.x0.values())
    optional = (certificate.psnr_db, certificate.features, *certificate.limits.values())
    numbers = (*errors, *(number for number in optional if number is not None))
    if not isinstance(certificate.passed, bool) or not isinstance(certificate.pictures, int):
        raise ValueError("a certificate has a verdict and a number of pictures")
    if not all(isinstance(t, str) for t in texts) or not all(isinstance(n, int | float) for n in numbers):
        raise ValueError("a certificate has failures in words and measures in numbers")
    return certificate
