"""What sampling needs to know of a model, whether it lies in a bundle or is being trained."""

from dataclasses import dataclass, field

from .fitted import Fitted
from .schedule import Schedule


@dataclass(frozen=True)
class Defaults:
    """Settings for callers that give none. Guidance acts inside `interval` of sigma / alpha; None: everywhere."""

    sampler: str
    steps: int
    guidance: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Condition:
    """What a super-resolution stage takes beside x_t: the smaller picture, noised and enlarged (see upscale.py).

    Attributes:
        factor: by which it enlarges.
        noise: the timestep whose noise the smaller picture gets, unless a request says another.
        most: the largest such timestep in training.
        stage: its place in a cascade whose base is 0, a part of what its noise depends on.
    """

    factor: int
    noise: float
    most: float
    stage: int = 1


@dataclass(frozen=True)
class Model:
    """What sampling needs to know of a model, beside the engine that runs it.

    Attributes:
        class_names: class k is `class_names[k]`; the null class is K, their number.
        image_shape: (C, H, W).
        fitted: steps fitted to this model, by the number of evaluations.
        guidance_input: w from .. to, which the network takes as an input: each picture is one row of it. None: the
            graph computes every guided picture twice, with and without its class, and takes any w.
        few_steps: the network was trained for the steps in `fitted`, and predicts nothing useful at other timesteps.
        condition: of a super-resolution stage; None: pictures are drawn from noise alone.
    """

    name: str
    class_names: list[str]
    image_shape: tuple[int, int, int]
    schedule: Schedule
    defaults: Defaults
    fitted: dict[int, Fitted] = field(default_factory=dict, kw_only=True)
    guidance_input: tuple[float, float] | None = field(default=None, kw_only=True)
    few_steps: bool = field(default=False, kw_only=True)
    condition: Condition | None = field(default=None, kw_only=True)

    @property
    def stage(self) -> int:
        """Its place in a cascade: 0 is the base, or a model that is alone."""
        return self.condition.stage if self.condition else 0

    def rows(self, pictures: int, guided: int) -> int:
        """The rows that the network computes to evaluate `pictures`, of which `guided` are guided."""
        return pictures if self.guidance_input else pictures + guided
