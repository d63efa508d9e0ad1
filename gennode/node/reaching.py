"""Finding out how others can reach this node, taking the role that follows, telling the swarm."""

from __future__ import annotations

import asyncio
import logging
import time

from gennode.errors import GennodeError, NetworkError
from gennode.mesh.p2pd.relay_check import check_relay
from gennode.mesh.p2pd.roles import Role, better_relays, is_reached_by_relay, next_role
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.reach.observer import ask_observers
from gennode.mesh.reach.reach import Sighting
from gennode.node.live import LiveNode
from gennode.wire.fields import Reach

log = logging.getLogger(__name__)

OBSERVERS_ASKED = 4
REFRESH_S = 1.0  # a relay that dies takes its addresses with it
REFRESHES_PER_CHECK = 600  # routers restart, and hand out new addresses
LOST_REFRESHES = 4  # in a row without a relay's address: then other relays are tried
RELAY_TRIES = 5
RELAY_PATIENCE_S = 5.0  # a place takes 1 s; without one the node still hears of relays later
POLL_S = 0.1


class Reaching:
    """Watches our addresses and what observers say of them."""

    def __init__(self, node: LiveNode, transport: P2pdTransport) -> None:
        self._node = node
        self._transport = transport
        self.sightings: tuple[Sighting, ...] = ()
        """What the observers that were asked last saw."""
        self._relays = transport.relays  # to begin with, should we find ourselves behind a NAT
        self._lost_refreshes = 0
        self._tell()

    @property
    def reach(self) -> Reach:
        """How others reach us, as far as we know."""
        if self._transport.role is not Role.PRIVATE:
            return "direct"
        return "relayed" if is_reached_by_relay(self._transport.addresses()) else "unknown"

    async def keep(self) -> None:
        """Announce new addresses as they come and withdraw those that go; now and then ask
        observers, and change the role when they say that it is wrong."""
        while True:
            for _ in range(REFRESHES_PER_CHECK):
                await asyncio.sleep(REFRESH_S)
                await self._refresh()
            await self.check()

    async def _refresh(self) -> None:
        try:
            changed = await self._transport.refresh()
        except GennodeError as error:  # the daemon can't be started just now
            log.info("addresses: %s", error)
            return
        if changed:
            self._tell()
        if self._transport.role is Role.PRIVATE:
            await self._look_for_relays()

    async def _look_for_relays(self) -> None:
        """Behind a NAT: leave relays that give no address, or are none, for announced ones."""
        has_one = is_reached_by_relay(self._transport.addresses())
        self._lost_refreshes = 0 if has_one else self._lost_refreshes + 1
        better = better_relays(
            self._transport.peer,
            self._transport.relays,
            {seen.peer: seen.addresses for seen in self._node.live() if seen.relay},
            lost=self._lost_refreshes > LOST_REFRESHES,
        )
        if better:
            log.info("reach: from now on by %d announced relays", len(better))
            self._lost_refreshes = 0
            await self._become(Role.PRIVATE, better)

    async def _become(self, role: Role, relays: tuple[str, ...] = ()) -> None:
        try:
            await self._transport.become(role, relays)
        except GennodeError as error:  # whoever needs the daemon next tries again
            log.warning("reach: %s", error)
        self._tell()

    async def settle(self) -> None:
        """Find out how others reach us, for as long as a start may take. Behind a NAT, wait for a
        relay; as a relay, prove what we carry: NetworkError if that fails."""
        await self.check()
        if self._transport.role is Role.RELAY:
            await self._prove_relay()
        deadline_s = time.monotonic() + RELAY_PATIENCE_S
        while self.reach == "unknown" and time.monotonic() < deadline_s:
            await self._refresh()
            await asyncio.sleep(POLL_S)

    async def _prove_relay(self) -> None:
        """Send more through us than the relays of others let pass.

        NetworkError if that fails however often the daemon is started anew.
        """
        for tries_left in reversed(range(RELAY_TRIES)):
            try:
                await check_relay(self._transport.addresses()[0])
            except NetworkError as error:
                if not tries_left:
                    raise
                log.warning("relay: %s; starting it again", error)
                await self._transport.become(Role.RELAY)
            else:
                return

    async def check(self) -> None:
        """Ask observers, and take the role that follows: a matter of seconds."""
        if self._transport.role not in (Role.PUBLIC, Role.PRIVATE):
            return
        try:
            peers = sorted(await self._transport.direct_peers())[:OBSERVERS_ASKED]
            self.sightings = await ask_observers(self._transport, peers, self._transport.port)
        except GennodeError as error:
            log.info("reach: %s", error)
            return
        role = next_role(self._transport.role, self.sightings)
        if role is not self._transport.role:
            log.info("reach: %s, say %d observers", role, len(self.sightings))
            await self._become(role, self._relays if role is Role.PRIVATE else ())

    def _tell(self) -> None:
        self._node.locate(reach=self.reach, relay=self._transport.role is Role.RELAY)
