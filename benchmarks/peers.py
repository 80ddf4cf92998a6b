"""Loops that people would use instead, on the same weights, noise, steps and guidance.

All are DDIM at evenly spaced timesteps, so their pictures are the same but for rounding.
"""

import copy
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.bundle import Model
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.generate import to_uint8
from cfgdiff.runtime.noise import normals
from cfgdiff.runtime.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor, nn

PEER = "diffusers, "  # begins the names of diffusers' loops
Draw = Callable[[int], np.ndarray]  # a number of pictures, of all classes in turn -> (N, H, W, C) uint8
# Noise (N, C, H, W), labels (N,), w (N,) float32, and what a stage takes beside them -> (N, H, W, C) uint8
Sampler = Callable[..., np.ndarray]


def ours(engine: Engine, bundle: Bundle, steps: int) -> Draw:
    """`generate`: the guidance inside the graph. Every evaluation is guided, as diffusers' loop does it, whatever the
    bundle's interval."""

    def draw(n: int) -> np.ndarray:
        drawn = generate(
            engine, bundle, _classes(bundle, n), steps, sampler="ddim", spacing="uniform", interval=(0, np.inf), batch=n
        )
        return np.concatenate([pictures for _, pictures in drawn])

    return draw


def two_passes(engine: Engine, bundle: Bundle, steps: int) -> Draw:
    """The same engine called twice a step, once with the null class, and the guidance computed outside."""
    w, null_class = np.float32(bundle.defaults.guidance), len(bundle.class_names)
    none = np.zeros(0, np.float32)

    class TwoPasses(WrappedEngine):
        def predict(
            self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
            *condition: np.ndarray,
        ) -> np.ndarray:  # fmt: skip
            """See `Engine.predict`, all rows guided."""
            cond = super().predict(sample, timestep, class_label, none, *condition)
            null = np.full_like(class_label, null_class)
            uncond = super().predict(sample, timestep, null, none, *condition)
            return uncond + w * (cond - uncond)

    return ours(TwoPasses(engine), bundle, steps)


def diffusers_loops(network: "nn.Module", bundle: Bundle, steps: int, compiled: bool) -> dict[str, Draw]:
    """diffusers' loop around every form of a network that may be its fastest, by name; see `forms`.

    Raises:
        Failure: as `diffusers_sampler`.
    """
    return {PEER + name: diffusers_loop(form, bundle, steps) for name, form in forms(network, compiled).items()}


def forms(network: "nn.Module", compiled: bool) -> dict[str, Any]:
    """A network in every form that may be the fastest, by name: float32 and, where the device has it, bfloat16; eager
    in either layout, because which is faster depends on the network and the precision; and by torch.compile, which
    takes a minute a form and batch. On the GPU where PyTorch sees one."""
    import torch

    from cfgdiff.trainer.optim import fast_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if fast_bfloat16(device) else {})
    networks: dict[str, Any] = {}
    for name, dtype in dtypes.items():
        plain = copy.deepcopy(network).to(device, dtype)
        last = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        networks |= {f"eager {name}": plain, f"eager {name}, channels_last": last}
        if compiled:
            networks[f"compiled {name}, channels_last"] = torch.compile(last, dynamic=False)
    return networks


def diffusers_loop(network: "nn.Module", bundle: Bundle, steps: int) -> Draw:
    """`diffusers_sampler` for pictures of all classes in turn, guided as the bundle's default. Raises `Failure`, also
    for timesteps that would not be ours."""
    if steps < 1 or (T := bundle.schedule.T) % steps:
        raise Failure(f"diffusers' evenly spaced timesteps are ours only where the steps divide {T}, found {steps}")
    sampler = diffusers_sampler(network, bundle, steps)

    def draw(n: int) -> np.ndarray:
        w = np.full(n, bundle.defaults.guidance, np.float32)
        return sampler(normals(0, np.arange(n), 0, bundle.image_shape), np.array(_classes(bundle, n)), w)

    return draw


def _scheduler(schedule: Schedule, steps: int) -> Any:
    """diffusers' DDIM at evenly spaced timesteps. Raises `Failure`, see `diffusers_sampler`."""
    try:
        from diffusers import DDIMScheduler
    except ImportError:
        raise Failure("diffusers is not installed; pip install diffusers") from None
    scheduler: Any = DDIMScheduler(
        num_train_timesteps=schedule.T, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing",
        beta_schedule={"cosine": "squaredcos_cap_v2", "linear": "linear"}[schedule.kind],
        prediction_type={"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[schedule.prediction],
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    return scheduler


def diffusers_sampler(network: "nn.Module", model: Model, steps: int) -> Sampler:
    """PyTorch with diffusers' DDIMScheduler and the usual doubled batch, as in its pipelines, where any w is not 1 and
    the network does not take w itself; a network in bfloat16 runs under autocast. A super-resolution stage takes its
    two further inputs, as `runtime.generate.conditioned` makes them, behind w.

    Raises:
        Failure: diffusers is not installed.
    """
    import torch

    schedule, null_class = model.schedule, len(model.class_names)
    scheduler = _scheduler(schedule, steps)
    weights = next(network.parameters())
    device, low = weights.device, weights.dtype is torch.bfloat16  # autocast alone would convert them at every call

    def predict(x: "Tensor", t: float, labels: "Tensor", w: "Tensor", *further: "Tensor") -> "Tensor":
        times = torch.full((len(x),), t, device=device)
        if model.guidance_input:
            return network(x, times, labels, w)
        if bool((w == 1).all()):
            return network(x, times, labels, *further)
        both = torch.cat([torch.full_like(labels, null_class), labels])
        doubled = (torch.cat([each, each]) for each in further)
        uncond, cond = network(torch.cat([x, x]), torch.cat([times, times]), both, *doubled).float().chunk(2)
        return uncond + w[:, None, None, None] * (cond - uncond)

    @torch.no_grad()
    def draw(noise: np.ndarray, labels: np.ndarray, weights: np.ndarray, *further: np.ndarray) -> np.ndarray:
        x, label, w, *others = (torch.from_numpy(array).to(device) for array in (noise, labels, weights, *further))
        for t in scheduler.timesteps:
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                prediction = predict(x, float(t) + 1, label, w, *others)
            x = scheduler.step(prediction.float(), t, x).prev_sample
        return to_uint8(x.cpu().numpy() * schedule.data_std)

    return draw


def _classes(bundle: Bundle, n: int) -> list[int]:
    return [i % len(bundle.class_names) for i in range(n)]


def torch_network(bundle: Bundle, checkpoint: Any = None) -> "nn.Module":
    """The bundle's network in PyTorch, with the weights of its graph, or that of a run or checkpoint.

    Raises:
        Failure: PyTorch is missing, or the bundle does not say which preset it is of, and no checkpoint is given.
    """
    try:
        from cfgdiff.trainer.build import make_network
        from cfgdiff.trainer.config import load_preset, make_config
        from cfgdiff.trainer.weights import initial_weights, load_model
    except ImportError as error:
        raise Failure(f"{error.name} is not installed; pip install 'cfgdiff[train]'") from None
    if checkpoint is not None:
        return load_model(checkpoint).network
    command = str(bundle.provenance.get("command", ""))  # and those that resumed it, after semicolons
    preset = re.search(r"--preset[ =](\S+)", command)
    if not preset:
        raise Failure(f"{bundle.path}: does not say which network it is; give --checkpoint RUN")
    changes = re.findall(r"--set[ =](network\..+?)(?= --|;|$)", command)
    weights, _ = initial_weights(bundle.path)
    for norm in ("group", "affine"):  # the preset's may have changed; `group` has all of `affine`'s weights, and more
        config = make_config(load_preset(preset[1]), (*changes, f"network.norm={norm}"))
        network = make_network(config, bundle.image_shape, len(bundle.class_names))
        own = network.state_dict()
        if all(name in weights and weights[name].numel() == value.numel() for name, value in own.items()):
            network.load_state_dict({name: weights[name].reshape(value.shape) for name, value in own.items()})
            return network.eval().requires_grad_(False)
    raise Failure(f"{bundle.path}: its graph is not of {command}; give --checkpoint RUN")
