"""Jobs that do not finish, engines that fail, queues that are full, and the end: only those concerned notice."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fakes import Formula, alone, drawn, failure, wait

from cfgdiff.runtime import Bundle, Engine, Plan, Request, resolve
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.server.scheduler import Closed, Failed, Full, Scheduler

Planned = Callable[..., Plan]


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


def test_a_listener_that_fails_ends_its_job_alone(bundle: Bundle, planned: Planned) -> None:
    def broken(event: Any) -> None:
        raise RuntimeError("the event loop is closed")

    with Scheduler(bundle, Formula(), rows=4) as scheduler:
        job = scheduler.submit(planned(5), on_event=broken)
        assert len(drawn(scheduler.submit(planned(5)))) == 5
        assert job.ended and scheduler.stats()["jobs_cancelled_total"] == 1


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
