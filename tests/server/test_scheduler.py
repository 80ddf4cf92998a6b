"""Jobs of all kinds through the scheduler: the pictures of `sample`, and whose turn it is."""

import asyncio
import dataclasses
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fakes import Formula, Gated, alone, drawn, wait

from cfgdiff.runtime import Blend, Bundle, Edit, Engine, Plan, Request, open_engine, resolve, sample
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.server import batches
from cfgdiff.runtime.server.batches import Drawing
from cfgdiff.runtime.server.scheduler import Ended, Picture, Preview, Scheduler

Planned = Callable[..., Plan]
MIXED: list[dict[str, Any]] = [
    {"n": 3, "steps": None}, {"n": 7, "steps": 5, "guidance": 2.0, "seed": 2**63 + 5},
    {"sampler": "ddpm", "steps": 6, "interval": (0, 1e9)}, {"n": 2, "sampler": "ddim", "eta": 0.5, "guidance": 1},
    {"n": 4, "sampler": "dpmpp-3m", "steps": 7, "guidance": [1.0, 2.5, 4.0, 1.0]}, {"sampler": "heun", "steps": 6},
    {"n": 3, "sampler": "unipc", "steps": 5, "guidance": 3, "interval": (0.3, 10), "indices": [9, 2, 4]},
    {"sampler": "ipndm", "timesteps": [990, 700.5, 300, 20], "steps": None}, {"sampler": "euler-a", "steps": 4},
    {"n": 2, "sampler": "fitted", "steps": 2}, {"steps": 1},
    {"n": 2, "steps": 12, "spacing": "quadratic", "seed": [8, 3]}, {"edit": Edit(np.zeros((32, 32, 3), np.uint8))},
    {"n": 3, "guidance": [2.0, 1.0, 3.0], "blend": Blend(9, ["dog", "ship", "cat"], [0.0, 0.5, 1.0])},
    {"n": 2, "sampler": "ddim", "steps": 8, "edit": Edit(np.full((32, 32, 3), 90, np.uint8), 0.6, np.eye(32) > 0)},
    {"n": 3, "guidance": [6.0, 1.0, 4.0], "rescale": 0.7, "threshold": 0.9},
]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_every_picture_is_that_of_sample_whatever_it_was_drawn_with(
    bundle: Bundle, planned: Planned, rows: int
) -> None:
    """From three threads, at random times."""
    plans = [planned(**settings) for settings in MIXED] * 2
    found, engine = dict[int, np.ndarray](), Formula()

    def client(mine: list[int], scheduler: Scheduler) -> None:
        rng = random.Random(mine[0])
        for i in mine:
            time.sleep(rng.random() * 0.004)
            job = scheduler.submit(plans[i], priority=rng.randrange(2), watch=rng.random() < 0.3)
            found[i] = np.stack([p for _, p in sorted((e.i, e.picture) for e in job if isinstance(e, Picture))])

    with Scheduler(bundle, engine, rows) as scheduler:
        order = random.Random(rows).sample(range(len(plans)), len(plans))
        clients = [threading.Thread(target=client, args=(order[k::8], scheduler)) for k in range(8)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(30)
    assert len(found) == len(plans)
    for i, plan in enumerate(plans):
        np.testing.assert_array_equal(found[i], alone(plan), err_msg=str(MIXED[i % len(MIXED)]))
    computed = [len(x) + len(w) for x, _, _, w in engine.calls]
    assert max(computed) <= max(rows, 2)
    assert rows == 1 or np.mean(computed) > 3


def test_pictures_at_other_steps_samplers_classes_and_guidance_share_a_call(
    bundle: Bundle, planned: Planned, gated: Any
) -> None:
    everywhere = {"interval": (0, 1e9)}
    with Scheduler(bundle, gated, rows=16) as scheduler:
        plans = [planned(classes=[3], guidance=1, steps=4),
                 planned(classes=[5], guidance=2, sampler="ddim", **everywhere),
                 planned(classes=[7], guidance=3, steps=2, sampler="ddpm", **everywhere)]  # fmt: skip
        jobs = [scheduler.submit(plans[0])]
        wait(lambda: len(gated.calls) == 1)  # the first is alone in its first call
        jobs += [scheduler.submit(plan) for plan in plans[1:]]
        gated.let(1)
        _, t, label, w = gated.calls[1]
        assert sorted(label.tolist()) == [3, 5, 7] and label[2] == 3  # those that are guided come first
        assert dict(zip(label.tolist(), w.tolist(), strict=False)) == {5: 2.0, 7: 3.0}
        assert t[2] < t[0] == t[1] == 1000
        gated.open()
        for job, plan in zip(jobs, plans, strict=True):
            np.testing.assert_array_equal(drawn(job), alone(plan))
    assert [len(x) for x, *_ in gated.calls] == [1, 3, 3, 2]


def test_where_guidance_is_an_input_a_guided_picture_is_one_row(bundle: Bundle) -> None:
    inside, engine = dataclasses.replace(bundle, guidance_input=(1.0, 8.0)), Gated()
    plan = resolve(inside, Request(["cat"] * 12, 2, 2.0, sampler="ddim"))
    with Scheduler(inside, engine, rows=8) as scheduler:
        job = scheduler.submit(plan)
        engine.open()
        np.testing.assert_array_equal(drawn(job), alone(plan))
    assert [len(x) for x, *_ in engine.calls] == [8, 8, 4, 4]


def test_where_guidance_is_an_input_no_row_of_a_call_is_without(bundle: Bundle) -> None:
    """Engines divide the guided rows and the others among threads for themselves, and here both cost the same."""
    inside, engine = dataclasses.replace(bundle, guidance_input=(1.0, 8.0)), Gated()
    plans = [resolve(inside, Request(["cat"] * 3, 2, w, sampler="ddim")) for w in (2.0, 1.0)]
    with Scheduler(inside, engine, rows=8) as scheduler:
        jobs = [scheduler.submit(plan) for plan in plans]
        engine.open()
        for job, plan in zip(jobs, plans, strict=True):
            assert np.abs(drawn(job).astype(int) - alone(plan)).max() <= 1
    assert all(len(w) == len(x) for x, _, _, w in engine.calls)
    assert {w for *_, weights in engine.calls for w in weights.tolist()} == {1, 2}


def test_where_kinds_do_not_mix_they_take_turns(bundle: Bundle, planned: Planned, gated: Any) -> None:
    everywhere = {"steps": 3, "interval": (0.0, 1e9)}
    plans = [planned(30, guidance=1, steps=3), planned(10, guidance=2, **everywhere),
             planned(10, guidance=3, seed=3, **everywhere), planned(6, guidance=[1, 2] * 3, **everywhere)]  # fmt: skip
    with Scheduler(bundle, gated, rows=8) as scheduler:
        scheduler._lanes[0].mixes = False
        jobs = [scheduler.submit(plans[0])]
        wait(lambda: len(gated.calls) == 1)
        jobs += [scheduler.submit(plan) for plan in plans[1:]]
        gated.open()
        for job, plan in zip(jobs, plans, strict=True):
            np.testing.assert_array_equal(drawn(job), alone(plan))
    kinds = [(len(x), len(w)) for x, _, _, w in gated.calls]
    assert all(g in (0, b) for b, g in kinds)
    assert [g > 0 for _, g in kinds[1:9]] in ([True, False] * 4, [False, True] * 4)
    assert np.mean([b + g for b, g in kinds]) > 6.5  # of 8 rows


def test_pictures_of_a_job_take_their_steps_together_where_calls_are_large(
    bundle: Bundle, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, plan, drawing = list[int](), planned(7, steps=2), batches.drawing

    def noted(engine: Engine, plan: Plan, watch: Any) -> Any:
        taken.append(len(plan))
        return drawing(engine, plan, watch)

    monkeypatch.setattr(batches, "drawing", noted)
    for rows, sizes in ((64, [4, 3]), (16, [1] * 7)):
        with Scheduler(bundle, Formula(), rows) as scheduler:
            np.testing.assert_array_equal(drawn(scheduler.submit(plan)), alone(plan))
        assert taken == sizes
        taken.clear()


def test_who_gives_several_pictures_at_once_waits_as_many_turns(bundle: Bundle, planned: Planned, gated: Any) -> None:
    with Scheduler(bundle, gated, rows=64) as scheduler:  # four pictures at once
        jobs = [scheduler.submit(planned(guidance=1))]
        wait(lambda: len(gated.calls) == 1)
        jobs.append(scheduler.submit(planned(400, classes=[1] * 400, guidance=1, steps=1)))
        jobs += [scheduler.submit(planned(classes=[2], guidance=1, steps=9, seed=k)) for k in range(200)]
        gated.open()
        for job in jobs:
            drawn(job)
    large = [(label == 1).sum() for _, _, label, _ in gated.calls[1:17]]
    assert large[0] == 4 and sum(large) <= 8  # a third of a turn of all 201 in each


def test_a_large_job_does_not_hold_up_a_small_one(bundle: Bundle, planned: Planned, gated: Any) -> None:
    with Scheduler(bundle, gated, rows=8) as scheduler:
        large = scheduler.submit(planned(1000, guidance=1))
        gated.let(5)
        small, middle = (
            scheduler.submit(planned(guidance=1, seed=9)),
            scheduler.submit(planned(100, guidance=1, seed=8)),
        )
        gated.let(1 + 3)  # the call that is under way, and the steps of the small one
        wait(lambda: small.done == 1)
        assert large.done < 20
        gated.let(30)
        assert abs(large.done - middle.done) <= 16  # equal shares since then
        assert scheduler.stats()["pictures_begun"] <= 40  # those that are begun come first
        large.cancel()
        middle.cancel()
        gated.open()
        np.testing.assert_array_equal(drawn(small), alone(planned(guidance=1, seed=9)))


def test_a_higher_priority_goes_first(bundle: Bundle, planned: Planned, gated: Any) -> None:
    with Scheduler(bundle, gated, rows=4) as scheduler:
        low = scheduler.submit(planned(20, classes=[1] * 20, guidance=1))
        wait(lambda: len(gated.calls) == 1)
        high = scheduler.submit(planned(6, classes=[2] * 6, guidance=1), priority=1)
        gated.let(1)
        gated.open()
        assert len(drawn(high)) == 6 and len(drawn(low)) == 20
    labels = [label.tolist() for _, _, label, _ in gated.calls]
    assert labels[:6] == [[1] * 4, *[[2] * 4] * 3, *[[2, 2, 1, 1]] * 2]


def test_a_cancelled_job_leaves_the_next_call(bundle: Bundle, planned: Planned, gated: Any) -> None:
    with Scheduler(bundle, gated, rows=8, most_waiting=12) as scheduler:
        job = scheduler.submit(planned(9, guidance=1))
        wait(lambda: len(gated.calls) == 1)
        other = scheduler.submit(planned(guidance=1, classes=[9]))
        gated.let(1)  # it is in the second call
        job.cancel()
        job.cancel()
        assert job.ended and list(job) == [] == list(job)
        gated.open()
        np.testing.assert_array_equal(drawn(other), alone(planned(guidance=1, classes=[9])))
        scheduler.submit(planned(12, steps=1, guidance=1))  # there is room
        stats = scheduler.stats()
    assert stats["jobs_cancelled_total"] == 1
    assert [len(x) for x, *_ in gated.calls][2:4] == [1, 1]


def test_previews_are_what_sample_shows(bundle: Bundle, planned: Planned) -> None:
    plan, seen = planned(steps=4), list[np.ndarray]()
    list(sample(Formula(), plan, lambda first, x0: seen.append(x0[0])))
    events = list[Any]()
    with Scheduler(bundle, Formula(), rows=4) as scheduler:
        scheduler.submit(plan, watch=True, on_event=events.append)
        job = scheduler.submit(planned(2, steps=40), watch=True)
        wait(lambda: job.ended)
        assert [type(event) for event in job].count(Preview) == 2 < len(seen)  # nobody read: as many as pictures
    assert [type(event) for event in events] == [*[Preview] * 4, Picture, Ended]
    for step, (event, x0) in enumerate(zip(events, seen, strict=False), start=1):
        assert (event.i, event.step) == (0, step)
        np.testing.assert_array_equal(event.x0, x0)


def test_events_reach_an_event_loop(bundle: Bundle, planned: Planned) -> None:
    async def client(scheduler: Scheduler) -> list[Any]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()
        scheduler.submit(planned(3), on_event=lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        return [await asyncio.wait_for(events.get(), 20) for _ in range(4)]

    with Scheduler(bundle, Formula(), rows=4) as scheduler:
        *pictures, end = asyncio.run(client(scheduler))
    assert sorted(event.i for event in pictures) == [0, 1, 2] and end == Ended()


def test_engines_of_one_kind_work_side_by_side(bundle: Bundle, planned: Planned) -> None:
    first, second, plan = Gated(), Gated(), planned(8, guidance=1)
    with Scheduler(bundle, [first, second], rows=4) as scheduler:
        job = scheduler.submit(plan)
        wait(lambda: len(first.calls) == len(second.calls) == 1)  # at the same time
        first.open()
        second.open()
        np.testing.assert_array_equal(drawn(job), alone(plan))
        assert scheduler.stats()["best_rows"] == 8
    assert first.closed and second.closed
    half = Formula()
    half.precision = "float16"
    for engines, listed in (([Formula(), half], "formula float32, formula float16"), ([], "none")):
        with pytest.raises(BadInput, match=f"^engines: expected engines of one kind, .* found {listed}$"):
            Scheduler(bundle, engines, rows=4)


class Lent(WrappedEngine):
    """An engine that others use on."""

    def close(self) -> None:
        """Nothing."""


def test_the_packaged_model_s_pictures_on_the_cpu(engine: Engine, packaged: Bundle) -> None:
    """ONNX Runtime rounds a row in another way in another batch."""
    plans = [resolve(packaged, Request([k] * n, steps, w, seed=k)) for k, (n, steps, w) in
             enumerate([(3, 2, 2.0), (1, 3, 1.0), (2, 1, 4.0)])]  # fmt: skip
    with Scheduler(packaged, Lent(engine), rows=6) as scheduler:
        for job, plan in [(scheduler.submit(plan), plan) for plan in plans]:
            expected = np.concatenate([part for _, part in sample(engine, plan)])
            assert np.abs(drawn(job).astype(int) - expected).max() <= 1


def test_on_openvino_they_are_the_same_to_the_last_bit(packaged: Bundle) -> None:
    """Its rows are computed in requests of fixed shape, which agree."""
    pytest.importorskip("openvino", reason="OpenVINO is missing: pip install 'cfgdiff[openvino]'")
    plans = [resolve(packaged, Request([k] * n, steps, w, seed=k, batch=1)) for k, (n, steps, w) in
             enumerate([(3, 2, 2.0), (1, 3, 1.0), (2, 1, 4.0)])]  # fmt: skip
    with open_engine(packaged, "openvino", "float32", threads=2) as engine:
        expected = [np.concatenate([part for _, part in sample(engine, plan)]) for plan in plans]
        with Scheduler(packaged, Lent(engine), rows=6) as scheduler:
            for job, pictures in [(scheduler.submit(plan), e) for plan, e in zip(plans, expected, strict=True)]:
                np.testing.assert_array_equal(drawn(job), pictures)


def test_pictures_of_the_next_call_are_begun_while_the_engine_computes(
    bundle: Bundle, planned: Planned, gated: Any
) -> None:
    with Scheduler(bundle, gated, rows=4) as scheduler:
        jobs = [scheduler.submit(planned(n, guidance=1)) for n in (40, 1, 1)]
        wait(lambda: len(gated.calls) == 1 and scheduler.stats()["pictures_begun"] == len(gated.calls[0][0]) + 4)
        gated.let(1)  # what was begun ahead is drawn, and no more than a call ahead is begun
        wait(lambda: scheduler.stats()["pictures_begun"] <= 12)
        gated.open()
        for job, n in zip(jobs, (40, 1, 1), strict=True):
            np.testing.assert_array_equal(drawn(job), alone(planned(n, guidance=1)))


def test_a_job_that_is_cancelled_while_its_pictures_are_begun_leaves_nothing(
    bundle: Bundle, planned: Planned, gated: Any
) -> None:
    with Scheduler(bundle, gated, rows=4) as scheduler:
        job = scheduler.submit(planned(40, guidance=1))
        wait(lambda: scheduler.stats()["pictures_begun"] == 8)
        job.cancel()
        assert not job.drawings and scheduler.stats()["pictures_begun"] == 0
        gated.open()
        assert len(drawn(scheduler.submit(planned(2)))) == 2


def test_an_engine_takes_no_picture_that_another_one_begins(
    bundle: Bundle, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Drawing.advance

    def slowly(drawing: Drawing, answer: np.ndarray | None) -> None:
        time.sleep(0.002 if answer is None else 0)
        advance(drawing, answer)

    class Slow(Formula):
        def predict(self, *inputs: np.ndarray) -> np.ndarray:  # type: ignore[override]
            time.sleep(0.005)
            return super().predict(*inputs)

    monkeypatch.setattr(Drawing, "advance", slowly)
    plans = [planned(5, guidance=1, steps=1, seed=seed) for seed in range(20)]
    with Scheduler(bundle, [Slow(), Slow()], rows=2) as scheduler:
        for job, plan in zip([scheduler.submit(plan) for plan in plans], plans, strict=True):
            np.testing.assert_array_equal(drawn(job), alone(plan))
