"""Jobs of all kinds through the scheduler: the pictures of `sample`, whose turn it is, and what may go wrong."""

import asyncio
import dataclasses
import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime import Blend, Bundle, Edit, Engine, Request, open_engine, resolve, sample
from cfgdiff.runtime.bundle import Defaults
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.fitted import Fitted
from cfgdiff.runtime.plan import Plan
from cfgdiff.runtime.server.scheduler import Closed, Ended, Failed, Full, Job, Picture, Preview, Scheduler

Planned = Callable[..., Plan]


class Formula:
    """Answers by sums and products of float32, so a row is the same in every call; `calls` are the inputs of each."""

    name, precision, max_batch, closed = "formula", "float32", 64, False

    def __init__(self) -> None:
        self.calls: list[tuple[np.ndarray, ...]] = []

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        """As the graph: rows 0 .. G-1 are guided, against the null class."""
        assert len(sample) == len(timestep) == len(class_label) >= len(guidance) and not self.closed
        self.calls.append((sample, timestep, class_label, guidance))
        g, w = len(guidance), guidance.reshape(-1, 1, 1, 1)
        answer = self._network(sample, timestep, class_label)
        uncond = self._network(sample[:g], timestep[:g], np.full(g, 10))
        answer[:g] = uncond + w * (answer[:g] - uncond)
        return answer

    def _network(self, x: np.ndarray, t: np.ndarray, label: np.ndarray) -> np.ndarray:
        pattern = (np.arange(32) % (label[:, None, None, None] + 2) / np.float32(16)).astype(np.float32)
        turned = np.roll(x, 1, axis=-1) * np.float32(0.25) - x * np.float32(0.125)
        return turned + (pattern - np.float32(0.25)) * (t.reshape(-1, 1, 1, 1) / np.float32(1000))

    def close(self) -> None:
        self.closed = True


class Gated(Formula):
    """Waits in every call until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self._gate = threading.Semaphore(0)

    def predict(self, *inputs: np.ndarray) -> np.ndarray:  # type: ignore[override]
        answer = super().predict(*inputs)
        assert self._gate.acquire(timeout=20)
        return answer

    def let(self, calls: int) -> None:
        """Let so many calls go on, and wait until the next one has begun, if there is one."""
        before = len(self.calls)
        self._gate.release(calls)
        wait(lambda: len(self.calls) >= before + calls)

    def open(self) -> None:
        """Hold up nothing any more."""
        self._gate.release(1_000_000)


def wait(until: Callable[[], bool]) -> None:
    """Until it is so; 20 seconds at most."""
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline, "it did not happen in 20 s"
        time.sleep(0.001)


def alone(plan: Plan, **changed: Any) -> np.ndarray:
    """The pictures of a plan as `sample` draws them, one at a time, (N, H, W, C) uint8."""
    each = dataclasses.replace(plan, request=dataclasses.replace(plan.request, **{"batch": 1} | changed))
    return np.concatenate([part for _, part in sample(Formula(), each)])


@pytest.fixture(scope="session")
def bundle(packaged: Bundle) -> Bundle:
    """The packaged model with defaults and fitted steps of its own, which a later model does not change."""
    fitted = Fitted((999.0, 400.0, 0.0), ((0.6, 0.3, 0.0, 0.0), (0.1, 0.9, 0.2, 0.0)), 4.0, (0.1, 3.0))
    return dataclasses.replace(packaged, defaults=Defaults("dpmpp-2m", 5, 4.0, (0.1, 3.0)), fitted={2: fitted})


@pytest.fixture(scope="session")
def planned(bundle: Bundle) -> Planned:
    """A function (n, settings of a request) -> plan of n pictures, of all classes in turn."""

    def plan(n: int = 1, **settings: Any) -> Plan:
        classes = settings.pop("classes", [i % 10 for i in range(n)])
        return resolve(bundle, Request(classes, **{"steps": 3} | settings))

    return plan


@pytest.fixture
def gated() -> Iterator[Gated]:
    """A gate that is open at the end, so that no thread waits for ever."""
    engine = Gated()
    yield engine
    engine.open()


def drawn(job: Job) -> np.ndarray:
    """All pictures of a job, each of them once."""
    found = dict[int, np.ndarray]()
    for event in job:
        assert isinstance(event, Picture) and event.i not in found, event
        found[event.i] = event.picture
    return np.stack([found[i] for i in range(job.n)])


def failure(job: Job) -> Failed:
    """The last event of a job, which failed; its error is a line."""
    *_, last = job
    assert isinstance(last, Failed) and last.error and "\n" not in last.error
    return last


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


def test_a_job_past_its_deadline_fails_and_others_go_on(bundle: Bundle, planned: Planned, gated: Any) -> None:
    with Scheduler(bundle, gated, rows=4) as scheduler:
        late = scheduler.submit(planned(9, guidance=1), deadline=time.monotonic() + 0.05)
        other = scheduler.submit(planned(2, guidance=1), deadline=time.monotonic() + 60)
        time.sleep(0.06)
        gated.open()
        assert failure(late) == Failed(
            "deadline: 0 of 9 pictures were finished by then; ask for fewer, or for fewer steps", "deadline"
        )
        np.testing.assert_array_equal(drawn(other), alone(planned(2, guidance=1)))
        assert scheduler.stats()["jobs_deadline_total"] == 1 and scheduler.stats()["pictures_waiting"] == 0


def test_a_full_queue_says_when_to_come_back(bundle: Bundle, planned: Planned, gated: Any) -> None:
    with Scheduler(bundle, gated, rows=4, most_waiting=10) as scheduler:
        job = scheduler.submit(planned(8, guidance=1))
        with pytest.raises(Full, match=r"^8 pictures wait, 10 may$") as first:
            scheduler.submit(planned(3))
        assert first.value.retry_after == 1
        scheduler.submit(planned(2))
        with pytest.raises(BadInput, match=r"^classes: expected at most 10 pictures, found 11; "):
            scheduler.submit(planned(11))
        time.sleep(0.5)  # the first call takes that long, for 4 evaluations
        gated.let(1)
        with pytest.raises(Full) as second:
            scheduler.submit(planned(10))
        assert 4 <= second.value.retry_after <= 8  # 10 pictures of 3 steps, 4 in each 0.5 s
        gated.open()
        assert len(drawn(job)) == 8


def test_closing_finishes_what_waits_and_takes_nothing_more(bundle: Bundle, planned: Planned, gated: Any) -> None:
    scheduler = Scheduler(bundle, gated, rows=4)
    jobs = [scheduler.submit(planned(n, guidance=1)) for n in (3, 5)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    wait(lambda: scheduler._closing)
    with pytest.raises(Closed, match=r"^the server is closing"):
        scheduler.submit(planned())
    assert not gated.closed
    gated.open()
    closing.join(20)
    assert [len(drawn(job)) for job in jobs] == [3, 5] and gated.closed


@pytest.mark.parametrize("how", [{"drain": False}, {"timeout": 0.01}])
def test_closing_at_once_fails_what_waits(bundle: Bundle, planned: Planned, gated: Any, how: dict) -> None:
    scheduler = Scheduler(bundle, gated, rows=4)
    job = scheduler.submit(planned(50, guidance=1))
    wait(lambda: len(gated.calls) == 1)
    threading.Timer(0.1, gated.open).start()
    scheduler.close(**how)
    assert failure(job).reason == "closed" and gated.closed and len(gated.calls) == 1


class Failing(Formula):
    """Fails in the calls of these numbers, and in those with rows of class 7."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers = numbers

    def predict(self, *inputs: np.ndarray) -> np.ndarray:  # type: ignore[override]
        answer = super().predict(*inputs)
        if len(self.calls) in self.numbers or 7 in inputs[2]:
            raise RuntimeError("the engine is hot\nand this is its trace")
        return answer


def test_where_a_call_fails_only_the_job_at_fault_does(bundle: Bundle, planned: Planned) -> None:
    with Scheduler(bundle, Failing(), rows=16) as scheduler:
        plans = [planned(classes=[k, k], seed=k) for k in (5, 7, 9)]
        jobs = [scheduler.submit(plan) for plan in plans]
        assert failure(jobs[1]) == Failed("the engine is hot", "engine")
        for k in (0, 2):
            np.testing.assert_array_equal(drawn(jobs[k]), alone(plans[k]))
        np.testing.assert_array_equal(drawn(scheduler.submit(plans[0])), alone(plans[0]))
        stats = scheduler.stats()
    assert (stats["jobs_engine_total"], stats["jobs_finished_total"], stats["jobs"]) == (1, 3, 0)


@pytest.mark.parametrize("reopens", [True, False])
def test_an_engine_that_fails_once_is_opened_anew_and_nobody_notices(
    bundle: Bundle, planned: Planned, reopens: bool
) -> None:
    first, second, closed = Failing(2), Formula(), list[Engine]()

    def reopen(engine: Any) -> Engine:
        assert engine.closed
        closed.append(engine)
        return second

    plan = planned(6)
    with Scheduler(bundle, first, rows=8, reopen=reopen if reopens else None) as scheduler:
        np.testing.assert_array_equal(drawn(scheduler.submit(plan)), alone(plan))
    assert closed == [first] * reopens and bool(second.calls) == second.closed == reopens


def test_an_engine_that_cannot_be_opened_again_fails_its_jobs_until_it_can(bundle: Bundle, planned: Planned) -> None:
    answers = iter([Failure("the GPU is gone"), Formula()])

    def reopen(engine: Any) -> Engine:
        if isinstance(answer := next(answers), Failure):
            raise answer
        return answer

    with Scheduler(bundle, Failing(1, 2), rows=8, reopen=reopen) as scheduler:
        assert failure(scheduler.submit(planned(2))).reason == "engine"
        assert len(drawn(scheduler.submit(planned(2)))) == 2


def test_a_picture_that_is_not_finite_fails_its_job_alone(bundle: Bundle, planned: Planned) -> None:
    class Damaged(Formula):
        def predict(self, *inputs: np.ndarray) -> np.ndarray:  # type: ignore[override]
            answer = super().predict(*inputs)
            answer[inputs[2] == 7] = np.nan
            return answer

    with Scheduler(bundle, Damaged(), rows=16) as scheduler:
        jobs = [scheduler.submit(planned(classes=[k])) for k in (5, 7)]
        assert failure(jobs[1]).error.startswith(
            "formula, float32: the network's prediction at t = 995.99 is not finite"
        )
        assert len(drawn(jobs[0])) == 1


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


def test_a_listener_that_fails_ends_its_job_alone(bundle: Bundle, planned: Planned) -> None:
    def broken(event: Any) -> None:
        raise RuntimeError("the event loop is closed")

    with Scheduler(bundle, Formula(), rows=4) as scheduler:
        job = scheduler.submit(planned(5), on_event=broken)
        assert len(drawn(scheduler.submit(planned(5)))) == 5
        assert job.ended and scheduler.stats()["jobs_cancelled_total"] == 1


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


def test_a_plan_of_another_bundle_is_refused(bundle: Bundle, packaged: Bundle) -> None:
    with Scheduler(bundle, Formula(), rows=4) as scheduler, pytest.raises(BadInput, match=r"^plan: expected one for"):
        scheduler.submit(resolve(packaged, Request(["cat"])))


def test_nothing_is_kept_of_jobs_that_ended(bundle: Bundle, planned: Planned) -> None:
    with Scheduler(bundle, Formula(), rows=16) as scheduler:
        jobs = [scheduler.submit(planned(steps=1, seed=k)) for k in range(200)]
        assert all(len(drawn(job)) == 1 for job in jobs)
        kept = [weakref.ref(job) for job in jobs]
        stats = scheduler.stats()
        jobs.clear()
        wait(lambda: gc.collect() >= 0 and not any(ref() for ref in kept))
    assert (stats["jobs"], stats["pictures_begun"], stats["pictures_total"]) == (0, 0, 200)
    assert stats["rows_total"] == 200 and 0 < stats["batch_fill"] <= 1
    assert 0 < stats["step_seconds"] <= stats["step_seconds_p95"] and stats["rows_per_second"] > 0


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
