"""One tenant on one device: what is known of its use, and the mode and the pace that it is given.

Turns a share into stores in the control file, and writes only what changed. Everything runs in the
governor's thread; figures are read from others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hami.nodeagent.governor.measuring import MemoryLook
from hami.nodeagent.governor.pacing import NS, Pacer, Window
from hami.nodeagent.governor.probe import Glimpse
from hami.nodeagent.governor.shares import DEFAULT_WEIGHT, WHOLE, Contender, Share
from hami.nodeagent.governor.tenants import Tenant
from hami.nodeagent.governor.untracked import UntrackedMeter
from hami.nodeagent.region import BURST_NS, CoreMode, Policy

ACTIVE_NS: Final = NS
"""Who has launched nothing, and was measured to do nothing, for so long does not contend."""
WAITING_NS: Final = 60 * NS
"""Who waits for a grant launches nothing meanwhile; nobody waits longer than that."""
PRESSED_NS: Final = NS // 2
"""Who took all that it was granted within this time wants as much as it can get."""
_USE_PERMILLE: Final = 5
"""Less than this is not work."""
_STEP: Final = 20
"""What one uses is taken in steps, so that shares do not change with every flicker."""
_RATE_CHANGE: Final = 0.002
_HALF_TIME_NS: Final = NS // 2


class Account:
    """One tenant on one device."""

    def __init__(self, tenant: Tenant, index: int) -> None:
        self.tenant, self.index = tenant, index
        self.uuid = tenant.devices[index]
        self.meter = UntrackedMeter()
        self.mode: CoreMode | None = None
        """None: nothing was decided yet."""
        self.permille: int | None = None
        """The share that it is held to; None: none."""
        self.use_permille: float | None = None
        """What the driver measured of late; None: nothing yet."""
        self.waited_ns = 0
        self.active = False
        self._pacer = Pacer()
        self._held = False
        self._key: tuple[int, int, int, Policy, bool, int] | None = None
        self._contender = Contender()
        self._decision: tuple[Share, bool] | None = None
        self._learnt = False
        self._taken_ns = self._observed_at = 0
        self._guessed = (0, 0)
        self._peak = 0.0
        self._pressed_at = -PRESSED_NS
        self._worked_at = -ACTIVE_NS
        self._rate: int | None = None
        self._waits: Mapping[int, int] = {}
        self._weighed = False

    @property
    def limit(self) -> int:
        """Permille that it was promised; 0: no limit."""
        return self.tenant.control.core_limit(self.index)

    @property
    def held(self) -> bool:
        """Whether it is stopped now and then, since pacing alone does not hold it."""
        return self._held

    def observe(self, now_ns: int, glimpse: Glimpse | None) -> None:
        """Note how things stand; None: the usage file cannot be read."""
        self._observed_at = now_ns
        granted_ns = self.tenant.control.granted(self.index, now_ns)
        submitted_ns = 0
        if glimpse is not None:
            self._taken_ns = glimpse.taken_ns[self.index]
            submitted_ns = min(glimpse.last_submit_ns, now_ns)
        pressing = self.mode is CoreMode.LIMIT and self._taken_ns >= granted_ns
        if pressing:
            self._pressed_at = now_ns
        self._pacer.tick(
            now_ns, granted_ns=granted_ns, taken_ns=self._taken_ns, permille=self.permille
        )
        idle_ns = now_ns - submitted_ns if submitted_ns else now_ns
        self.active = (
            idle_ns < ACTIVE_NS
            or (pressing and submitted_ns != 0 and idle_ns < WAITING_NS)
            or now_ns - self._worked_at < ACTIVE_NS
        )

    def learn(self, window: Window) -> None:
        """Take in what the driver measured."""
        measured = window.busy_ns / max(window.length_ns, 1) * 1000
        weight = 0.5 ** (window.length_ns / _HALF_TIME_NS)
        before = measured if self.use_permille is None else self.use_permille
        self.use_permille = before * weight + measured * (1 - weight)
        self._peak = max(measured, self._peak * weight)
        if measured >= _USE_PERMILLE:
            self._worked_at = window.end_ns
        self._pacer.learn(window)
        self._learnt = True

    def guess(self) -> None:
        """Where the driver does not measure: its own word is all there is, while it is paced."""
        now_ns, taken_ns = self._observed_at, self._taken_ns
        start_ns, before_ns = self._guessed
        self._guessed = (now_ns, taken_ns)
        if self.mode is not CoreMode.LIMIT or not start_ns or now_ns <= start_ns:
            self.use_permille = None
            return
        share = min(max(taken_ns - before_ns, 0) / (now_ns - start_ns), 1.0)
        self.use_permille = self._peak = share * 1000

    def weigh(self, look: MemoryLook) -> None:
        """Take in what its memory was: the limit counts what no hook has seen, too."""
        meter, control = self.meter, self.tenant.control
        untracked, context = meter.untracked_bytes, meter.context_bytes
        meter.measure(look.processes, before_bytes=look.before_bytes, after_bytes=look.after_bytes)
        if meter.untracked_bytes != untracked or not self._weighed:
            control.set_untracked(self.index, meter.untracked_bytes)
        if meter.context_bytes != context:
            control.set_context(self.index, meter.context_bytes)
        self._weighed = True
        for token, waited_ns in look.waited_ns.items():
            self.waited_ns += max(waited_ns - self._waits.get(token, 0), 0)
        self._waits = look.waited_ns

    def contender(self, now_ns: int) -> Contender:
        """How it stands among those that were given the device."""
        control = self.tenant.control
        wants = WHOLE
        if (
            self.mode is CoreMode.LIMIT
            and self.use_permille is not None
            and now_ns - self._pressed_at >= PRESSED_NS
        ):
            wants = min(-(-int(self._peak) // _STEP) * _STEP, WHOLE)
        key = (
            control.core_limit(self.index),
            control.weight,
            control.priority,
            control.policy,
            self.active,
            wants,
        )
        if key != self._key:
            self._key = key
            self._contender = Contender(
                limit=key[0],
                weight=key[1] or DEFAULT_WEIGHT,
                priority=key[2],
                policy=key[3],
                active=key[4],
                wants=key[5],
            )
        return self._contender

    def apply(self, share: Share, *, suspended: bool, now_ns: int) -> None:
        """Bring the control file in line with the share."""
        decision = (share, suspended)
        if decision == self._decision and not self._learnt:
            return
        self._decision, self._learnt = decision, False
        if self.mode is None:
            self._adopt(share)
        mode = CoreMode.SUSPEND if suspended else share.mode
        permille = share.permille if mode is CoreMode.LIMIT else None
        if mode is CoreMode.LIMIT and self._must_hold():
            mode = CoreMode.BLOCK
        # Who is held now is paced at its limit should this governor die.
        fallback = self.limit or WHOLE
        rate = self._pacer.rate(permille) if permille is not None else fallback * NS // WHOLE
        if mode is not CoreMode.OFF and self._differs(rate):
            self.tenant.control.set_pace(
                self.index, ns_per_second=rate, burst_ns=BURST_NS, now_ns=now_ns
            )
            self._rate = rate
        if mode is not self.mode:
            if mode is not self.tenant.control.core_mode(self.index):
                self.tenant.control.set_core_mode(self.index, mode)
            self.mode = mode
        self.permille = permille

    def _must_hold(self) -> bool:
        """Whether the grant does not pace it: then it is stopped until the average is right."""
        if self._held:
            self._held = self._pacer.overrun_ns > 0
        else:
            self._held = self._pacer.helpless
        return self._held

    def _adopt(self, share: Share) -> None:
        """Go on with the rate that an earlier governor had found right."""
        control = self.tenant.control
        if control.core_mode(self.index) is CoreMode.LIMIT and share.permille:
            self._pacer = Pacer(factor=control.rate(self.index) / (share.permille * NS / WHOLE))

    def _differs(self, rate: int) -> bool:
        return self._rate is None or abs(rate - self._rate) > self._rate * _RATE_CHANGE
