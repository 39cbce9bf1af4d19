"""A queue that many processes share: it loses, doubles, delays and reorders what it carries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from headrace.adapters.memory_queue import MemoryQueue
from headrace.ports.job_queue import DeadLetter, Delivery, Message
from tests.support.simulation.link import Killed, Link, failure
from tests.support.simulation.world import World

#: Seconds of silence after which a member of the group is taken for dead.
SESSION_S: Final = 6.0
#: Seconds within which a message is acknowledged, beside those that its rows take.
_PROMPT_S: Final = 3.0


class BrokerDelivery:
    """A message in somebody's hands."""

    raw = b""
    source = "simulated"

    def __init__(self, message: Message, link: Link, broker: Broker) -> None:
        self.message: Message | None = message
        self.link = link
        self.revoked = False
        self.is_done = False
        self.since_s = link.world.loop.time()
        self._broker = broker

    def done(self) -> None:
        """See Delivery.done. Nobody waits for it, so nobody knows whether it came through."""
        world, process = self.link.world, self.link.process
        if process.is_dead:
            return
        strike = world.strike("done")
        if strike is not None and strike.deed == "kill" and strike.when != "after":
            process.kill()
            raise Killed
        self.is_done = True
        world.later(world.latency_s(), self._broker.forget, self)
        if strike is not None and strike.deed == "kill":
            process.kill()
        elif strike is not None and strike.deed == "pause":
            process.pause(strike.seconds)


class Broker:
    """What the simulated processes have between them."""

    def __init__(self, world: World) -> None:
        self.out: list[BrokerDelivery] = []  # that are not acknowledged
        self._world = world
        self._there: list[Message] = []
        self._takers: list[tuple[asyncio.Future[BrokerDelivery], Link]] = []

    def publish(self, messages: Sequence[Message]) -> None:
        """Take messages in, as well as this broker does."""
        world, scenario = self._world, self._world.scenario
        for message in messages:
            if world.happens(scenario.loses):
                world.note("lost", message.ref)
                world.disturb()
                continue
            self._add(message)
            if world.happens(scenario.doubles):
                self._add(message)

    def take(self, link: Link, taken: asyncio.Future[BrokerDelivery]) -> None:
        """Have the next message given to a process."""
        self._takers.append((taken, link))
        self._hand_out()

    def give_up(self, taken: asyncio.Future[BrokerDelivery]) -> None:
        """Nobody waits for a message any more."""
        if not taken.cancel() and not taken.cancelled():
            self._take_away(taken.result())

    def forget(self, delivery: BrokerDelivery) -> None:
        """It is acknowledged, and not to be delivered again."""
        if delivery in self.out:
            self.out.remove(delivery)

    def forgotten(self) -> list[BrokerDelivery]:
        """What somebody who lives has taken long ago, and neither does nor acknowledges."""
        since = max(self._world.disturbed_s, self._world.scenario.faults_s)
        long_ago = self._world.loop.time() - _PROMPT_S - self._world.scenario.model_s
        return [
            each
            for each in self.out
            if not (each.link.process.is_dead or each.revoked)
            and max(each.since_s, since) < long_ago
        ]

    def left(self, link: Link) -> None:
        """A member of the group is gone, or taken for it: others get what it had."""
        for delivery in [each for each in self.out if each.link is link]:
            self._take_away(delivery)

    def _add(self, message: Message) -> None:
        world = self._world
        if world.happens(world.scenario.delays):
            delay_s = world.chance.uniform(0, 20)
            world.disturb(world.loop.time() + delay_s)
            world.later(delay_s, self._come, message)
        else:
            self._come(message)

    def _come(self, message: Message) -> None:
        self._there.append(message)
        self._hand_out()

    def _hand_out(self) -> None:
        """In any order, to anybody."""
        world = self._world
        self._takers = [(t, k) for t, k in self._takers if not (t.done() or k.process.is_dead)]
        while self._there and self._takers:
            message = self._there.pop(world.chance.randrange(len(self._there)))
            taken, link = self._takers.pop(world.chance.randrange(len(self._takers)))
            delivery = BrokerDelivery(message, link, self)
            self.out.append(delivery)
            taken.set_result(delivery)
            world.note(link.process.name, "taken", message.ref)
            if world.happens(world.scenario.takes_away):
                world.later(world.chance.uniform(0, 10), self._take_away, delivery)

    def _take_away(self, delivery: BrokerDelivery) -> None:
        if delivery in self.out and not delivery.revoked:
            self.out.remove(delivery)
            delivery.revoked = True
            assert delivery.message is not None
            self._come(delivery.message)


class SharedQueue:
    """The port `JobQueue`: a process's way to the broker."""

    shared = True

    def __init__(self, link: Link, broker: Broker) -> None:
        self._link = link
        self._broker = broker

    async def publish(self, messages: Sequence[Message]) -> None:
        await self._link.ask("queue", "publish", lambda: self._broker.publish(messages))

    async def take(self) -> Delivery:
        taken: asyncio.Future[BrokerDelivery] = self._link.world.loop.create_future()
        try:
            await self._link.ask("queue", "take", lambda: self._broker.take(self._link, taken))
            return await taken
        except BaseException:
            self._broker.give_up(taken)
            raise

    async def bury(self, letter: DeadLetter) -> None:
        world = self._link.world
        await self._link.ask("queue", "bury", lambda: world.letters.append(letter), args=(letter,))

    async def run(self) -> None:
        await self._link.world.loop.create_future()

    async def close(self) -> None:
        self._broker.left(self._link)


class OwnQueue(MemoryQueue):
    """The queue that one process has of its own, and which fails only with it."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    async def publish(self, messages: Sequence[Message]) -> None:
        await self._passed("publish")
        await super().publish(messages)

    async def bury(self, letter: DeadLetter) -> None:
        world = self._link.world
        await self._link.ask("queue", "bury", lambda: world.letters.append(letter), args=(letter,))

    async def _passed(self, operation: str) -> None:
        process = self._link.process
        if process.is_dead:
            raise Killed
        strike = self._link.world.strike(operation)
        if strike is None:
            return
        if strike.deed == "kill":
            process.kill()
            raise Killed
        if strike.deed == "refuse":
            raise failure("queue", sent=False)
        process.pause(strike.seconds)
        await asyncio.sleep(0)
