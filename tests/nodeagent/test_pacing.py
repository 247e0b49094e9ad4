"""The pacing loop against a model of a device: late, coarse measurements and wrong estimates."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest

from hami.nodeagent.governor.pacing import FACTOR_MIN, NS, Pacer, Window
from hami.nodeagent.region import BURST_NS

MS = 1_000_000
QUEUE_NS = 100 * MS


@dataclass
class Plant:
    """One container that wants all it can get, and a governor that ticks ten times a second.

    The shim takes ``bias`` times a kernel's true time out of the grant; the driver publishes whole
    percent of periods of ``period_ms``, ``lag_ms`` late.
    """

    permille: int
    kernel_ms: float = 1.0
    bias: float = 1.0
    period_ms: int = 200
    lag_ms: int = 100
    lies: bool = False
    """The container sets the sum that it has taken to zero again and again."""
    pacer: Pacer = field(default_factory=Pacer)
    busy: list[float] = field(default_factory=list)
    """Device time used in each millisecond."""
    _granted: float = 0.0
    _taken: float = 0.0
    _until: float = 0.0
    _waiting: bool = False
    _late: deque[tuple[int, Window]] = field(default_factory=deque)

    def run(self, seconds: float, *, wants: bool = True) -> None:
        rate = self.pacer.rate(self.permille)
        for _ in range(round(seconds * 1000)):
            now = len(self.busy) * MS
            self.busy.append(0.0)
            if wants:
                self._launch(now)
            self._execute(now)
            if now and now % (self.period_ms * MS) == 0:
                self._publish(now)
            if now % (100 * MS) == 0:
                rate = self._govern(now)
            self._granted += rate * MS / NS

    def share(self, start: float, end: float) -> float:
        """Points of a hundred that it used between two seconds."""
        used = self.busy[round(start * 1000) : round(end * 1000)]
        return sum(used) / len(used) / MS * 100

    def _launch(self, now: int) -> None:
        cost = self.kernel_ms * MS * self.bias
        while True:
            if not self._waiting:
                self._taken = max(self._taken, self._granted - BURST_NS) + cost
                self._waiting = True
            if self.lies:
                self._taken = 0
            if self._taken > self._granted + BURST_NS or self._until > now + QUEUE_NS:
                return
            self._waiting = False
            self._until = max(self._until, now) + self.kernel_ms * MS

    def _execute(self, now: int) -> None:
        self.busy[-1] = min(max(self._until - now, 0.0), MS)

    def _publish(self, now: int) -> None:
        used = sum(self.busy[-1 - self.period_ms : -1])
        percent = round(used / self.period_ms / MS * 100)
        window = Window(now - self.period_ms * MS, now, percent / 100 * self.period_ms * MS)
        self._late.append((now + self.lag_ms * MS, window))

    def _govern(self, now: int) -> int:
        self.pacer.tick(
            now, granted_ns=int(self._granted), taken_ns=int(self._taken), permille=self.permille
        )
        while self._late and self._late[0][0] <= now:
            self.pacer.learn(self._late.popleft()[1])
        return self.pacer.rate(self.permille)


@pytest.mark.parametrize("permille", [100, 300, 500, 700, 900])
@pytest.mark.parametrize("kernel_ms", [0.05, 5.0, 50.0])
@pytest.mark.parametrize("bias", [1.0, 0.5, 2.0, 5.0])
def test_mean_share_is_right_whatever_the_shim_estimates(
    permille: int, kernel_ms: float, bias: float
) -> None:
    plant = Plant(permille, kernel_ms=kernel_ms, bias=bias)

    plant.run(20)

    assert plant.share(4, 20) == pytest.approx(permille / 10, abs=1.5)


@pytest.mark.parametrize(("period_ms", "lag_ms"), [(50, 0), (200, 200), (1000, 500)])
def test_late_and_rare_measurements_do_not_make_it_swing(period_ms: int, lag_ms: int) -> None:
    plant = Plant(300, bias=2.0, period_ms=period_ms, lag_ms=lag_ms)

    plant.run(20)

    for second in range(8, 20):
        assert plant.share(second, second + 1) == pytest.approx(30, abs=2.5)


def test_good_estimate_is_right_from_the_first_second_on() -> None:
    plant = Plant(300)

    plant.run(1)

    assert plant.share(0, 1) == pytest.approx(30, abs=2.5)  # and of that, two the burst


def test_new_share_takes_effect_at_once() -> None:
    plant = Plant(200, bias=3.0)
    plant.run(10)
    plant.permille = 800

    plant.run(1.3)

    assert plant.share(10.3, 11.3) == pytest.approx(80, abs=4)


def test_idleness_teaches_nothing_and_saves_up_nothing() -> None:
    plant = Plant(300, bias=2.0)
    plant.run(10)
    learnt = plant.pacer.factor

    plant.run(10, wants=False)
    assert plant.pacer.factor == pytest.approx(learnt, rel=0.15)

    plant.run(1)
    assert plant.share(20, 21) == pytest.approx(30, abs=5)


def test_who_ignores_the_grant_is_found_out() -> None:
    plant = Plant(300, lies=True)

    plant.run(4)

    assert plant.pacer.helpless
    assert plant.pacer.factor == FACTOR_MIN
    assert plant.pacer.overrun_ns > 1 * NS


def test_measurement_of_a_time_that_was_not_paced_is_left_out() -> None:
    pacer = Pacer()
    for tick in range(20):
        pacer.tick(tick * 100 * MS, granted_ns=0, taken_ns=0, permille=None)
        pacer.learn(Window(max(tick - 2, 0) * 100 * MS, tick * 100 * MS, 100 * MS))

    assert pacer.factor == 1
    assert not pacer.overrun_ns


def test_clock_or_file_that_begins_anew_is_no_harm() -> None:
    plant = Plant(300)
    plant.run(3)

    plant.pacer.tick(0, granted_ns=0, taken_ns=0, permille=300)
    plant.pacer.learn(Window(-200 * MS, 0, 60 * MS))

    assert plant.pacer.factor == pytest.approx(1, rel=0.1)
