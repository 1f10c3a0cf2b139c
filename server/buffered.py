"""Rounds that take in answers made for an earlier one: semi-synchronous, and asynchronous as FedBuff has it.

Of Nguyen et al. (2022): a round of mode "async" is a buffer that `goal` updates fill; whoever answers makes room for
another node, which is sent the model of now. In mode "semi_sync" a cohort is asked when the round begins, and the round
ends after `period_s` all the same (Wu et al. 2021, SAFA, has such rounds).

In both a node is asked for one thing at a time, and not again in the round in which it was heard: so no round holds two
updates of one node. That is what a noisy sum rests on, and DP-FTRL's separation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace

from edge_runtime.updates import Codec, TensorLayout
from edge_runtime.updates.versions import Parcel
from server.aggregate import Aggregate
from server.buffer_config import BufferConfig
from server.checkpoint import Tree
from server.gather import Asked, receive
from server.link import POLL_S, Answer, Link, Outstanding, Question
from server.rounds import OpenRound, RoundResult


@dataclass(frozen=True, slots=True)
class Flight:
    """A node at work: what it was sent, for which round, and when."""

    message: str
    node: int
    round: int
    since_s: float
    question: Question
    parcel: Parcel


class BufferedGather:
    """`concurrency` nodes at work at any time; 0: a cohort is asked in each round, which is over after `period_s`.

    A node has `deadline_s` for its answer, and no round lasts longer.
    """

    def __init__(
        self,
        link: Link,
        codec: Codec,
        layout: TensorLayout,
        aggregate: Callable[[], Aggregate],
        rules: BufferConfig,
        *,
        min_updates: int,
        deadline_s: float,
        period_s: float,
        concurrency: int,
    ) -> None:
        self._link, self._codec, self._layout, self._aggregate, self._rules = link, codec, layout, aggregate, rules
        self._min_updates, self._deadline_s, self._period_s = min_updates, deadline_s, period_s
        self._concurrency = concurrency
        self._out: Outstanding = {}
        self._flights: dict[int, Flight] = {}  # by node, the oldest first
        self._heard: set[int] = set()  # in this round
        self._grounded: list[Flight] = []  # to be taken up again after a restart

    @property
    def busy(self) -> Collection[int]:
        return {*self._flights, *self._heard, *(flight.node for flight in self._grounded)}

    @property
    def wants(self) -> int | None:
        return max(0, self._concurrency - len(self._flights) - len(self._grounded)) if self._concurrency else None

    def gather(self, asked: Asked) -> RoundResult:
        opened = OpenRound(
            number=asked.number,
            names={},
            layout=self._layout,
            codec=self._codec,
            min_updates=self._min_updates,
            total=self._aggregate(),
            max_staleness=self._rules.max_staleness,
            discount=self._rules.discount,
        )
        self._take_up_again()
        self._give_up_stale(opened, asked)
        end = self._link.clock() + self._period_s
        downlink_bytes = self._send(asked, asked.parcels)
        while opened.good < asked.goal:
            if self._concurrency and (room := self._concurrency - len(self._flights)) > 0:
                downlink_bytes += self._send(asked, asked.more(room))
            if self._flights:
                first = min(flight.since_s for flight in self._flights.values()) + self._deadline_s
                answer = self._link.next_answer(self._out, min(end, first))
                if answer is not None:
                    self._land(answer, opened, asked)
                self._give_up_silent(opened, asked)
            elif not self._concurrency or opened.good >= self._min_updates:
                break  # all who could be asked have answered
            else:
                self._link.pause(POLL_S)  # nobody is there to be asked
            if self._link.clock() >= end:
                break
        self._heard.clear()
        return replace(opened.close("unheard"), downlink_bytes=downlink_bytes)

    def forget_nodes(self) -> None:
        """What nodes are at now belongs to a run that they will hear no more of."""
        self._flights, self._grounded, self._out = {}, [], {}

    def state(self) -> Tree:
        """Who is at work; where the work can be taken up again as if it had not been interrupted, at what as well."""
        questions: dict[int, Question] = {}
        parcels: dict[int, Parcel] = {}
        flights = [*self._grounded, *self._flights.values()]
        if self._link.replays:
            questions = {id(flight.question): flight.question for flight in flights}
            parcels = {id(flight.parcel): flight.parcel for flight in flights}
        return {
            "now_s": self._link.clock(),
            "questions": [{"task": dict(one.task), "program": one.program} for one in questions.values()],
            "parcels": [
                {"content": one.content, "whole": one.whole, "model": one.model_id, "beside": dict(one.beside)}
                for one in parcels.values()
            ],
            "flights": [
                {
                    "message": flight.message,
                    "node": str(flight.node),  # Flower's ids pass 2^63
                    "round": flight.round,
                    "since_s": flight.since_s,
                    "question": list(questions).index(id(flight.question)) if questions else None,
                    "parcel": list(parcels).index(id(flight.parcel)) if parcels else None,
                }
                for flight in flights
            ],
        }

    def restore(self, state: Tree) -> None:
        questions = [Question(one["task"], one["program"]) for one in state["questions"]]
        parcels = [Parcel(one["content"], one["whole"], one["model"], one["beside"]) for one in state["parcels"]]
        flights = [
            Flight(
                one["message"],
                int(one["node"]),
                one["round"],
                one["since_s"],
                Question({}) if one["question"] is None else questions[one["question"]],
                Parcel(b"") if one["parcel"] is None else parcels[one["parcel"]],
            )
            for one in state["flights"]
        ]
        if self._link.replays:
            self._grounded = flights
            return
        # The run is known by the same number: what was asked for is still on its way. Clocks of two processes need not
        # agree: those at work have as long as they had left.
        gone_by = self._link.clock() - state["now_s"]
        self._flights = {flight.node: replace(flight, since_s=flight.since_s + gone_by) for flight in flights}
        self._out = {flight.message: flight.node for flight in flights}

    def _send(self, asked: Asked, parcels: Mapping[int, Parcel]) -> int:
        """Put nodes to work; returns the bytes sent."""
        if not parcels:
            return 0
        since_s = self._link.clock()
        sent = self._link.send(asked.question.contents(parcels), asked.number, self._deadline_s)
        for message, node in sent.items():
            self._flights[node] = Flight(message, node, asked.number, since_s, asked.question, parcels[node])
        self._out |= sent
        return sum(map(asked.question.nbytes, parcels.values()))

    def _take_up_again(self) -> None:
        grounded, self._grounded = self._grounded, []
        for flight in grounded:
            contents = flight.question.contents({flight.node: flight.parcel})
            sent = self._link.send(contents, flight.round, self._deadline_s, since_s=flight.since_s)
            self._flights[flight.node] = replace(flight, message=next(iter(sent)))
            self._out |= sent

    def _land(self, answer: Answer, opened: OpenRound, asked: Asked) -> None:
        """One node has answered."""
        flight = self._flights.pop(answer.node, None)
        if flight is None:
            return  # nobody asked
        self._out.pop(flight.message, None)
        self._heard.add(answer.node)
        opened.names[answer.node] = str(answer.node)
        receive(opened, answer, asked, flight.round)
        asked.hear(answer)

    def _give_up_stale(self, opened: OpenRound, asked: Asked) -> None:
        """Nobody waits for what would be refused."""
        for flight in list(self._flights.values()):
            if asked.number - flight.round > self._rules.max_staleness:
                self._give_up(flight, opened.too_stale(flight.round), opened, asked)

    def _give_up_silent(self, opened: OpenRound, asked: Asked) -> None:
        now = self._link.clock()
        for flight in list(self._flights.values()):
            if now >= flight.since_s + self._deadline_s:
                self._give_up(flight, f"no reply within {self._deadline_s:g} s", opened, asked)

    def _give_up(self, flight: Flight, reason: str, opened: OpenRound, asked: Asked) -> None:
        del self._flights[flight.node]
        self._out.pop(flight.message, None)
        self._link.cancel({flight.message: flight.node})
        self._heard.add(flight.node)
        opened.names[flight.node] = str(flight.node)
        if failure := opened.fail(flight.node, reason):
            asked.told("client_dropped", asdict(failure))
        asked.hear(Answer(flight.node, None, reason))
