"""What a training run is made of: frozen pydantic models, presets in YAML, and `--set key=value` overrides."""

from importlib import resources
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cfgdiff.runtime.errors import BadInput, named, nearest
from cfgdiff.runtime.schedule import Schedule
from cfgdiff.runtime.upscale import FACTORS

LARGEST = 2**53  # of counts: what a float holds exactly
ENLARGING = "super-resolution-unet", "super-resolution"  # the network and the objective that belong together
OWN_NETWORKS = ("unet", "augmented-unet", "guided-unet", ENLARGING[0])
TAKES_W = "guided-unet"
FROM_TEACHERS = ("distilled-guidance", "trajectory", "consistency")  # objectives whose network takes w
RENAMED_CALLBACKS = {"ema": "snapshots"}  # the names that earlier checkpoints hold


class BadSetting(BadInput):
    """A setting of a config that does not exist or makes no sense; the line begins with its key."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Part(_Section):
    """A section that chooses a part by its name in the registry. `options` go to parts of plugins."""

    options: dict[str, Any] = Field(default_factory=dict)


class DataConfig(_Part):
    """How the pictures are read; auto looks at what lies in the folder."""

    name: str = "auto"


class NetworkConfig(_Part):
    """Widths and depths of the U-Net."""

    name: str = "unet"
    norm: Literal["group", "affine"] = "group"  # group normalisation (ADM), or the modulation's scale and shift alone
    channels: int = Field(64, ge=8, le=4096, multiple_of=4)
    multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((1, 2, 2), min_length=1, max_length=10)
    blocks: int = Field(1, ge=1, le=64)  # residual blocks a level going down; one more going up
    attention: tuple[int, ...] = (8,)  # resolutions (as the network sees them) with attention
    head_channels: int = Field(64, ge=1, le=4096)
    dropout: float = Field(0.0, ge=0, lt=1)
    patch: int = Field(1, ge=1, le=64)  # pixel-unshuffle factor of the stem
    narrow_up: bool = False  # going up, convolve at the next level's width before upsampling: a quarter less work


class ObjectiveConfig(_Part):
    """What the network learns to predict, and at which noise levels."""

    name: str = "simple"
    prediction: Literal["eps", "v", "x0"] = "v"
    schedule: Literal["cosine", "linear"] = "cosine"
    data_std: float = Field(1.0, gt=0)  # pictures in [-1, 1] are divided by this before noising
    timesteps: Literal["uniform", "continuous", "lognormal", "logit-normal"] = "uniform"
    mean: float = -0.5  # of ln(sigma / alpha) for lognormal, of ln(t / (T - t)) for logit-normal
    std: float = Field(1.2, gt=0)
    weighting: Literal["simple", "min-snr", "bound", "learned"] = "simple"
    gamma: float = Field(5.0, gt=0)  # of min-snr
    label_dropout: float = Field(0.1, ge=0, le=1)
    teacher: str = ""  # the run, checkpoint or bundle to learn from, of distilled-guidance and trajectory

    @model_validator(mode="after")
    def _bound_needs_steps(self) -> "ObjectiveConfig":
        if self.weighting == "bound" and self.timesteps != "uniform":
            raise ValueError(
                f"objective.weighting=bound is defined on the steps 1 .. T, found {self.timesteps}: "
                "set objective.timesteps=uniform"
            )
        return self


class OptimiserConfig(_Part):
    """AdamW for everything, or Muon for the convolutions and attention and AdamW for the rest."""

    name: str = "adamw"
    lr: float = Field(1e-3, gt=0)
    beta2: float = Field(0.999, ge=0, lt=1)  # AdamW's memory of squared gradients; lower suits a short run
    weight_decay: float = Field(0.0, ge=0)
    muon_lr: float = Field(0.02, gt=0)
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    warmup_steps: int = Field(100, ge=0, le=LARGEST)
    decay_share: float = Field(0.3, ge=0, lt=1)  # over this last share of the pictures the rate falls linearly to 0


class TrainConfig(_Section):
    """Length, batch, precision and bookkeeping of a run."""

    pictures: int = Field(1_000_000, ge=1, le=LARGEST)  # pictures to train on in all, repeats counted
    batch: int = Field(128, ge=1, le=2**20)
    image_size: int = Field(32, ge=8, le=4096)  # height and width that pictures are resized to
    flip: bool = True
    balanced: bool = False  # every class equally often, however many pictures it has
    # precision of the products; auto is bfloat16 where the device has it
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    accumulate: int = Field(1, ge=1, le=2**20)  # parts of a process's rows, computed one after the other to save memory
    clip: float | None = Field(None, gt=0)  # largest norm of all gradients together
    shard: bool = False  # for large networks: FSDP2, each process holds its share of weights, averages and optimiser
    compile: bool = False  # torch.compile: a sixth faster on a CPU with bfloat16 after 40 seconds; runs on a GPU, too
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**32)
    checkpoint_seconds: float = Field(60.0, gt=0)
    keep: int = Field(1, ge=1, le=LARGEST)  # newest checkpoints to keep

    @model_validator(mode="after")
    def _sharded_is_not_scaled(self) -> "TrainConfig":
        if self.shard and (self.precision == "float16" or self.accumulate > 1):
            raise ValueError(
                "train.shard goes without float16 and train.accumulate: "
                "set train.precision=bfloat16, train.accumulate=1"
            )
        return self


class Config(_Section):
    """A run. `schedule` is the noise schedule it implies; `callbacks` maps names to options, or to null for none."""

    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    train: TrainConfig = TrainConfig()
    callbacks: dict[str, dict[str, Any] | None] = Field(default_factory=dict)

    @field_validator("callbacks")
    @classmethod
    def _callbacks_have_their_present_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {RENAMED_CALLBACKS[name]: value[name] for name in RENAMED_CALLBACKS.keys() & value} | {
            name: options for name, options in value.items() if name not in RENAMED_CALLBACKS
        }

    @model_validator(mode="after")
    def _sizes_divide(self) -> "Config":
        factor = self.network.patch * 2 ** (len(self.network.multipliers) - 1)
        if self.network.name in OWN_NETWORKS and self.train.image_size % factor:
            raise ValueError(
                f"train.image_size must be a multiple of {factor} for this network, found {self.train.image_size}"
            )
        return self

    @model_validator(mode="after")
    def _teachers_teach_w(self) -> "Config":
        if self.objective.name in FROM_TEACHERS and self.network.name in OWN_NETWORKS and self.network.name != TAKES_W:
            needed = "needs a network that takes w: set network.name=guided-unet"
            raise ValueError(f"objective.name={self.objective.name} {needed}, found {self.network.name}")
        return self

    @model_validator(mode="after")
    def _enlarging_parts_belong_together(self) -> "Config":
        network, objective = ENLARGING
        if (self.network.name == network) != (self.objective.name == objective):
            both = f"network.name={network} and objective.name={objective}"
            raise ValueError(f"{both} need each other, found {self.network.name} and {self.objective.name}: set both")
        factor = self.objective.options.get("factor", 2) if self.objective.name == objective else 1
        if factor in FACTORS and self.train.image_size % factor:
            expected = f"a multiple of {factor}, the factor of objective.options"
            raise ValueError(f"train.image_size must be {expected}, found {self.train.image_size}")
        return self

    @property
    def parts(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(kind, name, options) of every part that is looked up in the registry; the data set only if named."""
        kinds = ["network", "objective", "optimiser", *(["data"] if self.data.name != "auto" else [])]
        parts: list[tuple[str, Any]] = [(kind, getattr(self, kind)) for kind in kinds]
        chosen = [(kind, part.name, part.options) for kind, part in parts]
        return chosen + [("callback", name, options or {}) for name, options in self.callbacks.items()]

    @property
    def schedule(self) -> Schedule:
        """The noise schedule, with T = 1000."""
        objective = self.objective
        return Schedule(objective.schedule, prediction=objective.prediction, data_std=objective.data_std)


def preset_names() -> list[str]:
    """The presets that come with the package."""
    files = [file.name for file in (resources.files(__package__) / "presets").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """The preset as nested dictionaries. Raises `BadInput` for an unknown name."""
    name = named("preset", "preset", name, preset_names())
    tree: dict[str, Any] = yaml.safe_load((resources.files(__package__) / "presets" / f"{name}.yaml").read_text())
    return tree


def make_config(tree: dict[str, Any], overrides: tuple[str, ...] = ()) -> Config:
    """A checked config from nested dictionaries and `section.key=value` overrides. Raises `BadSetting`."""
    tree = {section: dict(values) if isinstance(values, dict) else values for section, values in tree.items()}
    for override in overrides:
        key, equals, value = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot) or "\n" in override or "\r" in override:
            shown = override if override.isprintable() else repr(override)
            raise BadSetting(f"{shown}: expected section.key=value on one line, as in train.batch=64")
        tree.setdefault(section, {})[name] = _parse(key, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "value_error":  # a check of ours, which names the keys
            raise BadSetting(f"{first['ctx']['error']}") from None
        found = f"found {first['input']!r:.60}{_choices(first)}"
        raise BadSetting(f"{where or 'config'}: {first['msg']}, {found}") from None


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    # impossible dates, numbers that are none, deep nesting
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError, OverflowError):
        raise BadSetting(f"{key}={text!r:.60}: the value is not readable as YAML") from None


def _choices(error: Any) -> str:
    if error["type"] != "extra_forbidden":
        return ""
    *sections, key = map(str, error["loc"])
    model: Any = type(getattr(Config(), sections[0])) if sections else Config
    known = list(model.model_fields)
    return f"; known keys: {', '.join(known)}{nearest(key, known)}"
