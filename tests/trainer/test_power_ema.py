"""Averages of a chosen width: the profile against its definition, the reconstruction against a running average."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.trainer.build import add_callbacks, new_run
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.distributed import Processes
from cfgdiff.trainer.loop import train
from cfgdiff.trainer.power_ema import PowerEMA, coefficients, gamma_of_width, overlap, reconstruct, write_reconstructed
from cfgdiff.trainer.weights import load_model


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.25])
def test_the_profile_has_the_width(width: float) -> None:
    gamma, s = gamma_of_width(width), (np.arange(200_000) + 0.5) / 200_000
    profile = (gamma + 1) * s**gamma
    mean = (profile * s).mean()
    assert profile.mean() == pytest.approx(1, rel=1e-3)
    assert ((profile * (s - mean) ** 2).mean()) ** 0.5 == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize("width", [0.0, 0.3, float("nan")])
def test_widths_that_no_profile_has(width: float) -> None:
    with pytest.raises(BadInput, match=r"^width: expected 0.005 .. 0.28 .*, found "):
        gamma_of_width(width)


def test_the_overlap_is_the_integral_of_the_product() -> None:
    s = (np.arange(400_000) + 0.5) / 100_000  # 0 .. 4

    def profile(t: float, gamma: float) -> np.ndarray:
        return np.where(s <= t, (gamma + 1) * s**gamma / t ** (gamma + 1), 0)

    for a, b in (((2.0, 5.0), (4.0, 1.5)), ((3.0, 0.5), (1.0, 9.0)), ((2.0, 3.0), (2.0, 3.0))):
        expected = (profile(*a) * profile(*b)).sum() / 100_000
        assert overlap(*map(np.float64, (*a, *b))) == pytest.approx(expected, rel=1e-3)


def test_a_snapshot_that_is_there_is_taken_as_it_is() -> None:
    steps, gammas = np.array([100.0, 100.0, 200.0, 200.0]), np.array([3.0, 8.0, 3.0, 8.0])
    np.testing.assert_allclose(coefficients(steps, gammas, 200, 8.0), [0, 0, 0, 1], atol=1e-8)


class _Weights:
    """As much of a run as the callback looks at: one parameter that walks."""

    def __init__(self, out: Path, length: int) -> None:
        self.network, self.out, self.step, self.length = torch.nn.Linear(1, 1, bias=False), out, 0, length
        self.processes = Processes(torch.device("cpu"))

    @property
    def progress(self) -> float:
        return self.step / self.length


def test_a_width_chosen_afterwards_equals_one_kept_all_along(tmp_path: Path) -> None:
    run = _Weights(tmp_path, 2000)
    kept, wide = PowerEMA(run, snapshots=16), PowerEMA(_Weights(tmp_path / "none", 2000), widths=(0.08,), snapshots=1)
    rng = np.random.default_rng(0)
    for step in range(1, run.length + 1):
        run.step = step
        run.network.weight.data.fill_(np.sin(run.step / 150) + 0.1 * rng.standard_normal())
        kept.step(run, 0.0)
        gamma = gamma_of_width(0.08)
        torch._foreach_lerp_(wide._tracks[0], list(run.network.parameters()), 1 - (1 - 1 / run.step) ** (gamma + 1))
    assert len(list((tmp_path / "ema").iterdir())) == 32
    expected, tracks = wide._tracks[0][0].item(), [track[0].item() for track in kept._tracks]
    assert min(abs(track - expected) for track in tracks) > 0.02
    assert reconstruct(tmp_path, 0.08)["weight"].item() == pytest.approx(expected, abs=0.004)


def test_a_run_can_be_averaged_anew_and_loaded(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    config = make_config(tiny_tree)
    run = new_run(config, load_data(picture_folder, 16), tmp_path / "run", "cfgdiff train")
    add_callbacks(run)
    train(run)
    write_reconstructed(tmp_path / "run", 0.1, tmp_path / "run" / "ema-0.1")
    averaged = reconstruct(tmp_path / "run", 0.1)
    model = load_model(tmp_path / "run" / "ema-0.1")
    assert (
        model.provenance["command"].endswith("cfgdiff ema RUN --width 0.1") and model.provenance["pictures_seen"] == 96
    )
    callback = next(c for c in run.callbacks if isinstance(c, PowerEMA))
    for (name, p), track in zip(model.network.named_parameters(), callback._tracks[1], strict=True):
        torch.testing.assert_close(p, averaged[name])
        torch.testing.assert_close(p, track, rtol=0.01, atol=1e-3)


def test_no_snapshots_and_damaged_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no snapshots"):
        reconstruct(tmp_path, 0.1)
    (tmp_path / "ema").mkdir()
    (tmp_path / "ema" / "000000008-0.safetensors").write_bytes(b"nothing")
    with pytest.raises(Failure, match=r"000000008-0.safetensors: damaged snapshot"):
        reconstruct(tmp_path, 0.1)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        (None, {"weight": torch.ones(2)}, r"08-0\.safetensors: damaged snapshot"),
        ({"step": "8"}, {"weight": torch.ones(2)}, r"08-0\.safetensors: damaged snapshot \('gamma'\)"),
        ({"step": "nan", "gamma": "1"}, {"weight": torch.ones(2)}, "step nan and gamma 1"),
        ({"step": "0", "gamma": "1"}, {"weight": torch.ones(2)}, "step 0.0 and gamma 1"),
        ({"step": "8", "gamma": "1"}, {"weight": torch.ones(3)}, r"weight: expected \(2,\)"),
        ({"step": "8", "gamma": "1"}, {"weights": torch.ones(2)}, "weight is missing"),
        (
            {"step": "8", "gamma": "1"},
            {"weight": torch.tensor([1, torch.nan])},
            "weight holds values that are not finite",
        ),
    ],
)
def test_a_snapshot_that_does_not_fit_is_named(
    metadata: dict | None, tensors: dict, message: str, tmp_path: Path
) -> None:
    (tmp_path / "ema").mkdir()
    save_file(
        {"weight": torch.ones(2)}, tmp_path / "ema" / "000000009-0.safetensors", metadata={"step": "9", "gamma": "2.0"}
    )
    save_file(tensors, tmp_path / "ema" / "000000008-0.safetensors", metadata=metadata)
    with pytest.raises(Failure, match=message) as error:
        reconstruct(tmp_path, 0.1)
    assert "\n" not in str(error.value)


def test_what_a_kill_left_is_removed_and_other_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "ema").mkdir()
    left = ("000000009-0.safetensors", "000000002-0.partial", ".000000002-0.safetensors.01234567.partial")
    for name in (*left, "000000001-0.safetensors", "notes.safetensors"):
        (tmp_path / "ema" / name).touch()
    run = _Weights(tmp_path, 10)
    run.step = 5
    PowerEMA(run)
    assert sorted(file.name for file in (tmp_path / "ema").iterdir()) == [
        "000000001-0.safetensors",
        "notes.safetensors",
    ]
