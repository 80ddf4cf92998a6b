"""TensorRT engines beside a bundle's graphs: `NAME.engine`, and `NAME.engine.json` with its key and certificate.

An engine fits one graph, module, version, GPU architecture, driver, precision and profile. All of them are its key,
readable in the sidecar and hashed into its name. Nothing here loads TensorRT.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from .bundle import DAMAGE, Bundle, Variant
from .certificate import Certificate, parse_certificate
from .errors import Failure
from .files import write_json

SUFFIX = ".engine"
MODULES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
ANY_DRIVER = "any"  # of an engine that was built where no GPU was


@dataclass(frozen=True)
class EngineKey:
    """What an engine fits."""

    graph: str
    """sha256 over the names and hashes of the variant's files, external data included."""
    module: str
    """tensorrt or tensorrt_rtx."""
    version: str
    """of the module, as 1.7.1.116."""
    sm: tuple[str, ...]
    """Compute capabilities, as 8.6; TensorRT-RTX takes several in one engine."""
    driver: str
    """of the GPU it was built on, or "any"."""
    precision: str
    """of the variant."""
    profile: tuple[int, int, int]
    """Least, best and most pictures in a batch."""

    @property
    def digest(self) -> str:
        """sha256 over all parts."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def file_name(self) -> str:
        """As float32-tensorrt_rtx-sm86+89-0123456789ab.engine."""
        sm = "+".join(part.replace(".", "") for part in self.sm)
        return f"{self.precision}-{self.module}-sm{sm}-{self.digest[:12]}{SUFFIX}"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine beside a bundle. `certificate` is None until `cfgdiff verify` has run."""

    path: Path
    key: EngineKey
    sha256: str
    certificate: Certificate | None = None


def graph_digest(variant: Variant) -> str:
    """sha256 over the names and hashes of all files of a variant."""
    return hashlib.sha256(json.dumps(sorted(variant.files.items())).encode()).hexdigest()


def sidecar_of(engine: Path) -> Path:
    """Where the sidecar of an engine is."""
    return engine.with_name(engine.name + ".json")


def write_sidecar(engine: BuiltEngine) -> None:
    """Write the sidecar beside its engine. Raises `Failure`."""
    certificate = engine.certificate and engine.certificate.to_json()
    write_json(
        sidecar_of(engine.path), {"key": asdict(engine.key), "sha256": engine.sha256, "certificate": certificate}
    )


def read_sidecar(path: Path) -> BuiltEngine:
    """Raises `Failure`, naming the file, where it cannot be read or is damaged."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise ValueError
        tree = json.loads(path.read_bytes())
        json.dumps(tree, ensure_ascii=False).encode()  # fails for what cannot be printed
        parts = {field.name: tree["key"][field.name] for field in fields(EngineKey)}
        key = EngineKey(**parts | {"sm": tuple(map(str, parts["sm"])), "profile": tuple(map(int, parts["profile"]))})
        certificate = parse_certificate(tree["certificate"])
        if not (key.module in MODULES and key.sm and len(key.profile) == 3):
            raise ValueError
        if not 1 <= min(key.profile) <= max(key.profile) < 2**31:
            raise ValueError
        if not all(isinstance(part, str) for part in (key.graph, key.version, key.driver, key.precision)):
            raise ValueError
        return BuiltEngine(path.with_name(path.name.removesuffix(".json")), key, str(tree["sha256"]), certificate)
    except OSError as error:
        raise Failure(f"{path}: cannot be read ({error.strerror}); build the engine again") from None
    except (*DAMAGE, RecursionError):
        problem = "not the sidecar of an engine (JSON with key, sha256 and certificate)"
        raise Failure(f"{path}: {problem}; build the engine again") from None


def engines_beside(folder: Path) -> list[BuiltEngine]:
    """The engines in a bundle's folder, by name. Raises `Failure` for a sidecar that cannot be read."""
    return [read_sidecar(path) for path in sorted(folder.glob(f"*{SUFFIX}.json"))]


def expected_key(bundle: Bundle, engine: BuiltEngine, version: str, sm: str, driver: str) -> EngineKey:
    """The key that `engine` must have to run here: on the GPU `sm` with `driver`, under `version` of its module."""
    key = engine.key
    return replace(
        key, graph=graph_digest(bundle.variant(key.precision)), version=version,
        sm=key.sm if sm in key.sm else (sm,), driver=driver if key.driver != ANY_DRIVER else ANY_DRIVER,
    )  # fmt: skip


def check_key(engine: BuiltEngine, expected: EngineKey) -> None:
    """Raises `Failure` that says which parts differ from what is here, and how to rebuild."""
    differing = [
        f"{field.name} {_shown(getattr(engine.key, field.name))} (here: {_shown(getattr(expected, field.name))})"
        for field in fields(EngineKey) if getattr(engine.key, field.name) != getattr(expected, field.name)
    ]  # fmt: skip
    if differing:
        raise Failure(f"{engine.path}: built for {', '.join(differing)}; {rebuild(engine)}")


def check_file(engine: BuiltEngine) -> bytes:
    """The engine's bytes. Raises `Failure` where it is missing or not the one that was built."""
    try:
        data = engine.path.read_bytes()
    except OSError as error:
        raise Failure(f"{engine.path}: cannot be read ({error.strerror}); {rebuild(engine)}") from None
    if (actual := hashlib.sha256(data).hexdigest()) != engine.sha256:
        differ = f"sha256 is {actual[:12]}…, expected {engine.sha256[:12]}…"
        raise Failure(f"{engine.path}: damaged, {differ}; {rebuild(engine)}")
    return data


def check_certificate(engine: BuiltEngine) -> None:
    """Raises `Failure` where the engine has no certificate, or did not pass."""
    certificate, run = engine.certificate, f"run cfgdiff verify {engine.path.parent} --engine tensorrt"
    if certificate is None:
        raise Failure(f"{engine.path}: not certified; {run} here, or take it with `uncertified`")
    if certificate.sha256 != engine.sha256:
        raise Failure(f"{engine.path}: its certificate is of another engine; {run} again")
    if not certificate.passed:
        reasons = "; ".join(certificate.failures) or "no reason given"
        raise Failure(f"{engine.path}: failed its verification ({reasons}); {rebuild(engine)}, or use another engine")


def build_command(folder: Path) -> str:
    """The command that builds engines for a bundle."""
    return f"cfgdiff export --from-bundle {folder} --tensorrt"


def rebuild(engine: BuiltEngine, batch: str | None = None) -> str:
    """The command that makes an engine for what is here, of the same profile unless `batch` says another."""
    folder, batch = engine.path.parent, batch or ",".join(map(str, engine.key.profile))
    return f"rebuild it here with: {build_command(folder)} --batch {batch} --out {folder} --force"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
