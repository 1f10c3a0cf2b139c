"""How a cohort is asked and its answers become one delta, where the server may read every update."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from edge_runtime.updates import Codec, TensorLayout
from edge_runtime.updates.versions import Parcel
from server.aggregate import Aggregate
from server.checkpoint import Stateful, Tree
from server.counting import Counting
from server.link import Answer, Link, Question, read_update, why_declined
from server.rounds import OpenRound, RoundResult


@dataclass(frozen=True, slots=True)
class Asked:
    """One round about to be played: the nodes of `parcels` are sent the question, each with its own parcel.

    `hear` is told of every node once, when it has answered with its update, or else when that has failed. `model_hash`
    is of the model as nodes have it once they have decoded their parcel. `goal` good updates are wanted, 0 for all.
    `more(n)` gives the parcels of up to n further nodes, for them to be sent the question in this round as well. `told`
    takes events for the run's log.
    """

    number: int
    question: Question
    parcels: Mapping[int, Parcel]
    hear: Callable[[Answer], None]
    model_hash: Callable[[], bytes]
    goal: int = 0
    more: Callable[[int], Mapping[int, Parcel]] = lambda count: {}
    told: Callable[[str, Mapping[str, Any]], None] = lambda kind, data: None


class Gather(Stateful, Protocol):
    """One way to play a round."""

    @property
    def busy(self) -> Collection[int]:
        """Nodes that must not be asked now: at work for an earlier round, or done with their part of this one."""

    @property
    def wants(self) -> int | None:
        """How many nodes to ask when the round begins; None for a cohort."""

    def gather(self, asked: Asked) -> RoundResult:
        """Ask, wait for what comes by the deadline, and make one delta of it."""

    def forget_nodes(self) -> None:
        """Go on as another Flower run: nobody is at work on anything of it."""


class PlainGather:
    """Every update is read, checked and added by itself. `aggregate` makes what a round's updates are added to.

    The round ends with the last update that it wants, or at the deadline; whoever is not heard by the one is late, by
    the other has failed.
    """

    busy: Collection[int] = ()
    wants: int | None = None

    def __init__(
        self,
        link: Link,
        codec: Codec,
        layout: TensorLayout,
        aggregate: Callable[[], Aggregate],
        *,
        min_updates: int,
        deadline_s: float,
        counting: Callable[[int], Counting] = lambda number: Counting(),
    ) -> None:
        self._link, self._codec, self._layout, self._aggregate = link, codec, layout, aggregate
        self._min_updates, self._deadline_s, self._counting = min_updates, deadline_s, counting

    def gather(self, asked: Asked) -> RoundResult:
        opened = OpenRound(
            number=asked.number,
            names={node: str(node) for node in asked.parcels},
            layout=self._layout,
            codec=self._codec,
            min_updates=self._min_updates,
            total=self._aggregate(),
            counting=self._counting(asked.number),
        )
        goal, answered = asked.goal or len(asked.parcels), set()
        outstanding = self._link.send(asked.question.contents(asked.parcels), asked.number, self._deadline_s)
        end = self._link.clock() + self._deadline_s
        while opened.good < goal and (answer := self._link.next_answer(outstanding, end, goal - opened.good)):
            receive(opened, answer, asked)
            answered.add(str(answer.node))
            asked.hear(answer)
        if opened.good >= goal:
            for node in outstanding.values():
                opened.leave(node)
                asked.told("client_late", {"client": str(node), "reason": f"{goal} updates had come"})
        self._link.cancel(outstanding)
        result = opened.close(f"no reply within {self._deadline_s:g} s")
        for failure in result.failures:
            if failure.client not in answered:
                asked.told("client_dropped", asdict(failure))
        return replace(result, downlink_bytes=sum(map(asked.question.nbytes, asked.parcels.values())))

    def forget_nodes(self) -> None:
        """There is nothing to forget."""

    def state(self) -> Tree:
        """Nothing is carried from round to round."""
        return {}

    def restore(self, state: Tree) -> None:
        """There is nothing to restore."""


def content_of(answer: Answer) -> Any:
    """The reply's content; ValueError if the node sent none."""
    if answer.content is None:
        raise ValueError(answer.error)
    return answer.content


def receive(opened: OpenRound, answer: Answer, asked: Asked, made_for: int | None = None) -> None:
    """Make of an answer what there is to make of it, and tell of it. `made_for`: as in `OpenRound.receive`."""
    client = str(answer.node)
    if answer.content is not None and (reason := why_declined(answer.content)) is not None:
        opened.decline(answer.node, reason)
        asked.told("client_declined", {"client": client, "reason": reason})
        return
    try:
        update = read_update(content_of(answer))
    except ValueError as error:
        failure = opened.fail(answer.node, str(error))
    else:
        good = opened.good
        failure = opened.receive(answer.node, update, made_for)
        if opened.good > good:
            figures = {"bytes": len(update.payload), "examples": update.examples, "loss": update.loss}
            stale = {} if made_for is None else {"staleness": opened.number - made_for}
            asked.told("update_received", {"client": client, **figures, **stale})
    if failure is not None:
        asked.told("client_dropped", asdict(failure))
