"""What may go wrong between the controller and the API server, and never for long."""

from __future__ import annotations

from random import Random

from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Distortion, Drop, Fault

WRITES = (("patch", "pods"), ("create", "pods/binding"))
RULES_KEPT = 6


class Weather:
    """Adds a fault, or a bounded number of them, and takes the oldest away."""

    def __init__(self, server: ApiServer, chance: Random) -> None:
        self._faults = server.faults
        self._chance = chance
        self._rules: list[Fault] = []

    def clear(self) -> None:
        """From now on all goes well; what watches has a fresh start."""
        self._rules.clear()
        self._faults.clear()
        self._faults.drop_streams()

    def refuse_writes(self) -> None:
        """409, 429, 500 or 503 on the next writes."""
        verb, resource = self._chance.choice(WRITES)
        status = self._chance.choice((409, 409, 429, 500, 503))
        self._add(Fault(verb=verb, resource=resource, status=status, times=self._few()))

    def refuse_reads(self) -> None:
        """The next reads of pods fail."""
        status = self._chance.choice((429, 500, 503))
        self._add(Fault(verb="get", resource="pods", status=status, times=self._few()))

    def delay(self) -> None:
        """The next requests take long."""
        verb, resource = self._chance.choice((*WRITES, ("get", "pods")))
        seconds = self._chance.uniform(0.05, 0.4)
        self._add(Fault(verb=verb, resource=resource, delay_seconds=seconds, times=self._few()))

    def lose_answers(self) -> None:
        """The next writes are cut: before they happen, after, or long before they happen."""
        verb, resource = self._chance.choice(WRITES)
        drop = self._chance.choice((Drop.BEFORE, Drop.AFTER, Drop.AFTER, Drop.EARLY))
        seconds = self._chance.uniform(0.05, 1.0) if drop is Drop.EARLY else 0.0
        self._add(
            Fault(verb=verb, resource=resource, drop=drop, delay_seconds=seconds, times=self._few())
        )

    def go_down(self) -> None:
        """The API server is away for a minute, which lasts a second here."""
        self._faults.take_down(self._chance.uniform(0.1, 1.0))

    def forget_changes(self) -> None:
        """Whoever goes on from an earlier version meets 410."""
        self._faults.forget_changes()
        self._faults.drop_streams()

    def drop_watches(self) -> None:
        self._faults.drop_streams()

    def distort_watch(self) -> None:
        """The next watch of one kind is late, doubled, cut or silent; the other kind's is not."""
        resource = self._chance.choice(("pods", "pods", "nodes"))
        distortion = self._chance.choice(
            (None, None, Distortion.DUPLICATE, Distortion.END, Distortion.TRUNCATE)
        )
        self._add(
            Fault(
                verb="watch",
                resource=resource,
                times=1,
                delay_seconds=self._chance.choice((0.0, 0.05, 0.2)) if not distortion else 0.0,
                distortion=distortion,
                after_lines=self._chance.randrange(4),
            )
        )
        self._faults.drop_streams()

    def _few(self) -> int:
        return self._chance.choice((1, 1, 2, 3, 8))

    def _add(self, fault: Fault) -> None:
        self._rules.append(fault)
        self._faults.add(fault)
        if len(self._rules) > RULES_KEPT:
            self._faults.remove(self._rules.pop(0))
