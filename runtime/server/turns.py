"""Whose turn it is: the jobs that have a picture for a call. It knows no engines, and needs its caller's lock."""

from collections import deque
from itertools import islice

from .events import Job


class Turns:
    """Jobs of the highest priority take their turns one after the other, a picture each; those of lower ones wait."""

    def __init__(self) -> None:
        self._rings: dict[int, deque[Job]] = {}  # by priority; none is empty

    def __bool__(self) -> bool:
        return bool(self._rings)

    def offer(self, job: Job) -> None:
        """Put a job last, if it has a picture for a call and does not wait already."""
        if job.offers and not job.waits:
            job.waits = True
            self._rings.setdefault(job.priority, deque()).append(job)

    def take(self) -> Job:
        """The job whose turn it is; there must be one."""
        job = self._rings[max(self._rings)][0]
        self.remove(job)
        return job

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
