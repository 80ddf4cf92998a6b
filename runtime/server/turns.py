"""Whose turn it is: the jobs that have a picture for a call. It knows no engines, and needs its caller's lock."""

from collections import deque
from itertools import islice

from .events import Job


class Turns:
    """Jobs of the highest priority take their turns one after the other, a picture each; those of lower ones wait.

    A job that gives several pictures at once then `owes` as many turns as that is too many.
    """

    def __init__(self) -> None:
        self._rings: dict[int, deque[Job]] = {}  # by priority; none is empty
        self._passed: list[Job] = []  # over, in their order

    def offer(self, job: Job, first: bool = False) -> None:
        """Put a job last, or first, if it has a picture for a call and does not wait already."""
        if job.offers and not job.waits:
            job.waits = True
            ring = self._rings.setdefault(job.priority, deque())
            (ring.appendleft if first else ring.append)(job)

    def take(self, guided: bool | None = None) -> Job | None:
        """The job whose turn it is, among those that `may` give a picture of that kind; None where there is none.

        Jobs that may not are passed over, until `restore`.
        """
        while self._rings:
            job = self._rings[max(self._rings)][0]
            self.remove(job)
            if job.owes:
                job.owes -= 1
                self.offer(job)
            elif job.may(guided):
                return job
            else:
                self._passed.append(job)
        return None

    def restore(self) -> None:
        """Give the jobs that were passed over their places again."""
        while self._passed:
            self.offer(self._passed.pop(), first=True)

    def first(self, most: int) -> list[Job]:
        """The jobs whose turns come next."""
        return list(islice(self._rings[max(self._rings)], most)) if self._rings else []

    def remove(self, job: Job) -> None:
        """Take a job out, if it waits."""
        if job.waits:
            job.waits = False
            self._rings[job.priority].remove(job)
            if not self._rings[job.priority]:
                del self._rings[job.priority]
