"""How fast, and how close to float32, each engine computes a bundle on this machine's CPU: measured once, and kept.

An engine is certified here for this processor: its answers agree with each other and with the guidance equation, and
its pictures are those of float32 on ONNX Runtime from the same noise. Nothing is decided here; choose.py does.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .cache import cache_folder
from .engine import Engine
from .engines import REFERENCE, cpu_engines, open_at, own_version, package, ways_on_cpu
from .errors import Failure
from .examples import example_inputs, example_low
from .files import write_json
from .generate import generate
from .images import psnr
from .noise import normals
from .processor import processor
from .sidecar import graph_digest
from .threads import cores

log = logging.getLogger("cfgdiff.speeds")
MANY = 64  # pictures in the large call
LONGEST = 0.5  # seconds of a large call of the fastest engine; a slower network is measured on fewer pictures
DRAWING = 2.0  # seconds for the pictures of the fastest engine
PICTURES, MOST_STEPS = 8, 50
PAUSE = 0.02  # seconds between turns: the threads of the engine before spin for a little
LIMITS = {"float32": 45.0}  # dB that pictures may be from the reference's; other precisions 40
ROWS = {"float32": 1e-3}  # relative error of answers against each other; other precisions 5 %
Way = tuple[str, str]  # engine, precision
Clock = Callable[[], float]


@dataclass(frozen=True)
class Speed:
    """Measurements of an engine at a precision. Seconds, of guided calls; 0 where it does not open."""

    engine: str
    precision: str
    against: str = ""
    """Why it must not be used: it does not open, or its answers contradict each other. Empty where it may be."""
    opened: float = 0.0
    """Until its first answer, for one picture, the loading of its library included."""
    one: float = 0.0
    """Of a call for one picture."""
    many: float = 0.0
    """Of a call for `MANY`."""
    psnr_db: float = 0.0
    """Of its pictures to the reference's."""

    @property
    def way(self) -> Way:
        """(engine, precision)."""
        return self.engine, self.precision

    @property
    def limit(self) -> float:
        """The least `psnr_db` of a certified engine."""
        return LIMITS.get(self.precision, 40.0)

    @property
    def certified(self) -> bool:
        """Its pictures are float32's, so that it may be taken where no precision is named."""
        return not self.against and self.psnr_db >= self.limit

    @property
    def right(self) -> bool:
        """It may be taken where its precision is named: its answers make sense, and float32 is float32."""
        return self.certified if self.precision == "float32" else not self.against

    @property
    def verdict(self) -> str:
        """In words."""
        if self.against or self.way == REFERENCE:
            return self.against or "what the others are compared with"
        distance = f"pictures {self.psnr_db:.1f} dB from float32's"
        return distance if self.certified else f"{distance}, limit {self.limit:.0f}"

    def seconds(self, evaluations: float | None, batch: int) -> float:
        """Expected for as many evaluations of one guided picture, `batch` pictures at a time, with opening; None: for a
        large call alone."""
        if evaluations is None:
            return self.many
        batch = min(batch, MANY)
        call = self.one + (self.many - self.one) * (batch - 1) / (MANY - 1)
        return self.opened + evaluations * call / batch


def speeds(
    bundle: Bundle, threads: int | None = None, anew: bool = False, kept_only: bool = False
) -> tuple[Speed, ...]:
    """Every way to compute a bundle on this CPU, from the cache, else measured now and put there.

    Args:
        anew: measure even where it was done before.
        kept_only: do not measure; return none where it was not done before.
    """
    key = key_of(bundle, threads)
    file = _file_of(key)
    kept = None if anew or file is None else _read(file, key)
    if kept is not None or kept_only:
        return kept or ()
    log.info("measuring the engines of this machine, once (%s) ...", file or "nowhere to keep it")
    measured = measure(bundle, threads)
    if file is not None and measured[0].many:
        _keep(file, key, measured)
    return measured


def key_of(bundle: Bundle, threads: int | None) -> dict[str, Any]:
    """Everything that the figures depend on, readable."""
    here, fitted = processor(), json.dumps({n: asdict(f) for n, f in bundle.fitted.items()})
    key = {
        "processor": here.name,
        "instructions": " ".join(sorted(here.instructions)),
        "threads": str(threads) if threads else f"the engine's choice of {cores()} cores",
        "versions": {"cfgdiff": own_version()} | {name: package(name) for name in cpu_engines()},
        "graphs": {name: graph_digest(variant) for name, variant in bundle.variants.items()},
        "ways": [" ".join(way) for way in ways_on_cpu(bundle)],
        "defaults": asdict(bundle.defaults),
        "fitted": hashlib.sha256(fitted.encode()).hexdigest(),
    }
    as_read_back: dict[str, Any] = json.loads(json.dumps(key))
    return as_read_back


def measure(bundle: Bundle, threads: int | None = None, clock: Clock = time.perf_counter) -> tuple[Speed, ...]:
    """Open every engine at every precision of its own, time their calls in turns and compare their pictures."""
    with ExitStack() as held:
        measured, opened = _open_all(bundle, threads, held, clock)
        if REFERENCE not in opened:
            return tuple(measured.values())
        one = _turns(opened, _call(bundle, 1), 5, clock)
        n, steps = _affordable(bundle, min(one.values()))
        reference = _pictures(opened[REFERENCE], bundle, n, steps)
        for way, engine in opened.items():
            speed = replace(measured[way], against=_contradiction(engine, bundle), one=one[way])
            if not speed.against:
                try:
                    pictures = reference if way == REFERENCE else _pictures(engine, bundle, n, steps)
                    speed = replace(speed, psnr_db=round(psnr(pictures, reference), 1))
                except Failure as error:  # an answer that is not finite, for example
                    speed = replace(speed, against=str(error))
            measured[way] = speed
        b = next(b for b in (MANY, 16, 4, 1) if b * min(one.values()) <= LONGEST or b == 1)
        for way, seconds in _turns(opened, _call(bundle, b), 2, clock).items():
            measured[way] = replace(measured[way], many=seconds * MANY / b)
    return tuple(measured.values())


def _open_all(
    bundle: Bundle, threads: int | None, held: ExitStack, clock: Clock
) -> tuple[dict[Way, Speed], dict[Way, Engine]]:
    """Every way with the time until its first answer, or why it has none; and the engines, closed with `held`."""
    measured, opened, longest = dict[Way, Speed](), dict[Way, Engine](), dict[str, float]()
    first = _call(bundle, 1)
    for name, precision in ways_on_cpu(bundle):
        started = clock()
        try:
            engine = held.enter_context(closing(open_at(name, bundle, precision, threads)))
            engine.predict(*first)
        except (Failure, RuntimeError) as error:  # RuntimeError: raised by engines' libraries
            measured[name, precision] = Speed(name, precision, " ".join(str(error).split()))
            if (name, precision) == REFERENCE:
                break  # nothing to compare with
            continue
        # The first of an engine loads its library, too, as the only one in a later process will.
        longest[name] = max(clock() - started, longest.get(name, 0.0))
        measured[name, precision], opened[name, precision] = Speed(name, precision, opened=longest[name]), engine
    return measured, opened


def _call(bundle: Bundle, b: int) -> tuple[np.ndarray, ...]:
    """Inputs of `Engine.predict` for b guided rows of all classes in the middle of the schedule."""
    w = bundle.defaults.guidance if bundle.defaults.guidance != 1 else 2.0
    return (
        normals(0, np.arange(b), 0, bundle.image_shape),
        np.full(b, bundle.schedule.T / 2, np.float32),
        np.arange(b) % len(bundle.class_names),
        np.full(b, w, np.float32),
        *example_inputs(bundle, b),
    )


def _turns(engines: dict[Way, Engine], inputs: tuple[np.ndarray, ...], rounds: int, clock: Clock) -> dict[Way, float]:
    """The least seconds of a call of each. After two turns, engines twice as slow as the fastest get no more."""
    best = dict.fromkeys(engines, float("inf"))
    for n in range(rounds):
        fastest = min(best.values())
        for way, engine in engines.items():
            if n >= 2 and best[way] > 2 * fastest:
                continue
            time.sleep(PAUSE)
            started = clock()
            engine.predict(*inputs)
            best[way] = min(best[way], clock() - started)
    return best


def _affordable(bundle: Bundle, one: float) -> tuple[int, int]:
    """How many pictures to compare, and their evaluations: the bundle's, unless that takes too long."""
    steps = min(bundle.defaults.steps, MOST_STEPS)
    return max(1, min(PICTURES, int(DRAWING / max(1e-9, steps * one)))), steps


def _pictures(engine: Engine, bundle: Bundle, n: int, steps: int) -> np.ndarray:
    """n pictures of all classes in turn at the bundle's defaults, (n, H, W, C) uint8."""
    classes = [i % len(bundle.class_names) for i in range(n)]
    drawn = generate(engine, bundle, classes, steps, batch=n, low=example_low(bundle, n))
    return np.concatenate([pictures for _, pictures in drawn])


def _contradiction(engine: Engine, bundle: Bundle) -> str:
    """Rows must not depend on each other, and guided ones are uncond + w (cond - uncond), where the graph and not the
    network guides. Empty where that holds.
    """
    x, t, label, w, *further = _call(bundle, 3)
    t = np.array([0.2, 0.5, 0.8], np.float32) * bundle.schedule.T

    def ask(rows: list[int], w: np.ndarray) -> np.ndarray:
        return engine.predict(x[rows], t[rows], label[rows], w, *(a[rows] for a in further)).astype(np.float64)

    every = [0, 1, 2]
    cond, guided = ask(every, w[:0]), ask(every, w)
    if not bundle.guidance_input:
        uncond = ask(every, 0 * w)
        guided = uncond + w[:, None, None, None] * (cond - uncond)
    answers = {
        "rows in another order": (ask([2, 1, 0], w), guided[::-1]),
        "rows with and without w": (ask(every, w[:2]), np.concatenate([guided[:2], cond[2:]])),
        "a row alone": (ask([0], w[:1]), guided[:1]),
    }
    size, limit = float(np.abs(guided).max()) + 1e-12, ROWS.get(engine.precision, 0.05)
    for case, (answer, expected) in answers.items():
        error = float(np.abs(answer - expected).max()) / size
        if not error <= limit:  # nor NaN
            return f"its answers contradict each other ({case}: error {error:.1e}, limit {limit:g})"
    return ""


def _file_of(key: dict[str, Any]) -> Path | None:
    """Where the figures are kept; None where this user has no cache."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    try:
        return cache_folder() / "engines" / f"{digest[:32]}.json"
    except RuntimeError:  # no home folder
        return None


def _read(file: Path, key: dict[str, Any]) -> tuple[Speed, ...] | None:
    """None where the file is missing, damaged or of another key: then the engines are measured again."""
    try:
        tree = json.loads(file.read_bytes())
        kept = tuple(Speed(**entry) for entry in tree["speeds"])
        figures = [value for s in kept for value in (s.opened, s.one, s.many, s.psnr_db)]
        typed = all(isinstance(value, int | float) for value in figures) and all(
            isinstance(s.against, str) for s in kept
        )
        return kept if typed and kept and tree["key"] == key else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("%s: cannot be read (%s); measuring again", file, error)
        return None


def _keep(file: Path, key: dict[str, Any], measured: tuple[Speed, ...]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"key": key, "speeds": [asdict(s) for s in measured]})
    except (OSError, Failure) as error:
        log.info("%s: cannot be kept (%s); it will be measured again", file, error)
