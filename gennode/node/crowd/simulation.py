"""A swarm of hundreds in virtual time: a pool, sessions, churn; and what came of them.

The product's own code decides: who hosts what (`sharding.plan`, `sharding.rebalance`, on what
`sharding.capacity` makes of each machine), and each session's route (`sharding.route`). Modelled
and not run: the tokens of a session, which advances in chunks whose pace follows from who else
computes at its hops (`sharding.predict`); delays between peers, from coordinates; announcements,
seen with up to ten seconds' delay; fetching and loading of weights. Machines are kinds with
published figures (`pool.py`); how sessions arrive and how long they are is drawn
(`arrivals.py`). A run is a pure function of its scenario.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from gennode.errors import UsageError
from gennode.node.crowd.arrivals import GAPS, mean_work
from gennode.node.crowd.asking import Asking
from gennode.node.crowd.brain import Brain
from gennode.node.crowd.changes import Changes
from gennode.node.crowd.events import Events
from gennode.node.crowd.member import Member, Owner
from gennode.node.crowd.news import News
from gennode.node.crowd.pool import MAX_REGIONS, MODELS, draw_owner, draw_peer
from gennode.node.crowd.tally import Tally
from gennode.wire.ids import PeerId

MAX_PEERS = 5_000
MAX_MINUTES = 1_440.0
MAX_LOAD = 5.0  # beyond what the pool can do, so that refusing is seen
MAX_CHURN = 2.0  # of the pool per minute
OWNERS_PER_REGION = 4
OWNER_UPLOAD_BYTES_PER_S = 12.5e6
CRASH_SHARE = 0.5  # of those that go: without a word
RETURN_SHARE = 0.5  # of those that come: were here before and have their files still
AWAY_S = (20.0, 30.0)  # from a departure to the next arrival: at least, and more in the mean
SLICES = 120  # of the timeline


@dataclass(frozen=True)
class Scenario:
    """What is simulated. `load`: tokens asked for per second, as a share of what the first plan
    predicts; those of prompts count for less (`arrivals.PROMPT_WEIGHT`). `churn`: the share of
    the pool that goes per minute; as many come.
    """

    peers: int = 100
    minutes: float = 30.0
    seed: int = 0
    load: float = 0.5
    churn: float = 0.0
    regions: int = 3
    arrivals: str = "poisson"
    model: str = "70b"

    def check(self) -> None:
        """UsageError if it makes no sense."""
        for name, value, low, high in (
            ("peers", self.peers, 1, MAX_PEERS),
            ("minutes", self.minutes, 0.1, MAX_MINUTES),
            ("load", self.load, 0.01, MAX_LOAD),
            ("churn", self.churn, 0.0, MAX_CHURN),
            ("regions", self.regions, 1, MAX_REGIONS),
        ):
            if not low <= value <= high:
                raise UsageError(f"{name} is {value}; it lies between {low} and {high}")
        for name, chosen, known in (
            ("arrivals", self.arrivals, GAPS),
            ("model", self.model, MODELS),
        ):
            if chosen not in known:
                raise UsageError(f"{name} is {chosen!r}; it is one of {', '.join(known)}")


@dataclass(frozen=True)
class Outcome:
    """What came of a run; all else is in `tally`."""

    tally: Tally
    running: int  # sessions under way at the end
    planned_token_s: float  # by the first plan
    planned_step_s: float
    asked_token_s: float  # tokens per second in the mean, as `load` counts them
    missing: str  # what the pool lacked at the start, in words
    utilisation: float  # share of the time that workers which serve compute, in the mean
    peers_at_end: int
    events: int


class Swarm:
    """One run. `members` are those that the directory shows, by id; `changes` moves them."""

    def __init__(self, scenario: Scenario) -> None:
        scenario.check()
        self.scenario = scenario
        self._rng = random.Random(f"{scenario.seed}/pool")
        self._churn = random.Random(f"{scenario.seed}/churn")
        self._events = Events()
        self.tally = Tally(scenario.minutes * 60, SLICES)
        self._brain = Brain(scenario.model, scenario.seed)
        self.members: dict[PeerId, Member] = {}
        self._gone: list[Member] = []
        self._away: list[Member] = []
        self._drawn = 0
        for _ in range(scenario.peers):
            member = self._new_member()
            self.members[member.peer] = member
        self._plan = self._brain.plan(self.members.values(), 0)
        self._asked_token_s = scenario.load * self._plan.rate_token_s
        news = News(self._events, self._brain.model, self.members.values())
        self._asking = Asking(
            self._events,
            self.tally,
            news,
            self._brain,
            self.members,
            self._owners(),
            seed=scenario.seed,
            arrivals=scenario.arrivals,
            gap_s=mean_work() / self._asked_token_s if self._asked_token_s else 0.0,
        )
        self.changes = Changes(
            self._events, self.tally, news, self._brain, self.members, self._asking
        )

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Let something else happen, too."""
        self._events.after(delay_s, action)

    def run(self, report: Callable[[float], None] = lambda _: None) -> Outcome:
        """Let it all happen; `report` hears the virtual seconds now and then."""
        self.changes.begin({host.peer: host.span for host in self._plan.hosts})
        if self._asked_token_s:
            self._asking.begin()
        if self.scenario.churn:
            self._plan_departure()
        self._events.run(self.tally.duration_s, report)
        running = self._asking.close()
        return Outcome(
            tally=self.tally,
            running=running,
            planned_token_s=self._plan.rate_token_s,
            planned_step_s=self._plan.step_s,
            asked_token_s=self._asked_token_s,
            missing=self._plan.missing,
            utilisation=self._utilisation(),
            peers_at_end=len(self.changes.living),
            events=self._events.handled,
        )

    def _owners(self) -> list[Owner]:
        owners = []
        for number in range(OWNERS_PER_REGION * self.scenario.regions):
            region = number % self.scenario.regions
            peer, place = draw_owner(self._rng, number, region)
            candidate = self._brain.owner(peer, place, OWNER_UPLOAD_BYTES_PER_S)
            owners.append(Owner(peer, candidate))
        return owners

    def _new_member(self) -> Member:
        self._drawn += 1
        specimen = draw_peer(self._rng, self._drawn, self.scenario.regions)
        return Member(specimen, self._brain.candidate(specimen), self._brain.chunk_s(specimen))

    # -- churn --------------------------------------------------------------------------------

    def _plan_departure(self) -> None:
        mean_s = 60 / (self.scenario.churn * self.scenario.peers)
        self._events.after(self._churn.expovariate(1 / mean_s), self._depart)

    def _depart(self) -> None:
        """Somebody goes, and somebody will come."""
        self._plan_departure()
        living = self.changes.living
        if not living:
            return
        member = self._churn.choice(living)
        go = self.changes.leave
        if self._churn.random() < CRASH_SHARE:
            go = self.changes.crash
        self._gone.append(member)
        go(member)
        least_s, more_s = AWAY_S
        away_s = least_s + self._churn.expovariate(1 / more_s)
        self._events.after(away_s, self._arrive, member)

    def _arrive(self, departed: Member) -> None:
        """As likely as not somebody who was here before, with the files that it had."""
        if not departed.alive:
            self._away.append(departed)
        if self._away and self._churn.random() < RETURN_SHARE:
            index = self._churn.randrange(len(self._away))
            old = self._away.pop(index)
            again = Member(old.specimen, old.candidate, old.chunk_s, old.on_disk)
            self.changes.join(again)
        else:
            self.changes.join(self._new_member())

    def _utilisation(self) -> float:
        now_s = self._events.now_s
        busy_s = serving_s = 0.0
        for member in dict.fromkeys((*self.members.values(), *self._gone)):
            serving_s += member.serving_s
            if member.serving_since_s is not None:
                serving_s += now_s - member.serving_since_s
            busy_s += member.busy_s
        # what was begun counts as a whole, so a short run may have more than there was time for
        return min(1.0, busy_s / serving_s) if serving_s else 0.0


def simulate(scenario: Scenario, report: Callable[[float], None] = lambda _: None) -> Outcome:
    """Run a scenario; the same one gives the same outcome, to the last bit."""
    return Swarm(scenario).run(report)
