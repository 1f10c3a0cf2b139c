"""Rounds under secure aggregation over Flower messages: who takes part, in which sums, and what update they make.

The protocol itself is played by `secagg_round.py`. What a round knows lives for the round; from one round to the next
only the devices' public keys are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError, PeerError, RunError
from edge_runtime.secagg import Outcome, Server
from edge_runtime.secagg.keys import device_id, verify_hello
from edge_runtime.secagg.transitions import FIRST, LAST
from edge_runtime.sums import work_hash
from server.aggregate import Aggregate
from server.checkpoint import Tree
from server.gather import Asked, content_of
from server.link import Answer, Hello, Link, greeting, read_hello
from server.protection_config import SecureConfig
from server.rounds import Failure, RoundResult
from server.secagg_round import Book, Deadlines, Group, play
from server.sum_plan import SumPlanner, group_sizes

_PRGS = {"aes-ctr": "aes-256-ctr", "chacha20": "chacha20"}


class SecureGather:
    """Asks cohorts for the sum of their updates. `devices` are the keys that may take part; None: all.

    All who come through are in the sum, be they more than the round wants: to leave some out would take another phase.
    """

    busy: Collection[int] = ()
    wants: int | None = None

    def __init__(
        self,
        link: Link,
        secure: SecureConfig,
        planner: SumPlanner,
        size: int,
        aggregate: Callable[[], Aggregate],
        *,
        seed: int,
        min_updates: int,
        deadline_s: float,
        devices: frozenset[bytes] | None = None,
    ) -> None:
        self._link, self._secure, self._planner, self._size, self._aggregate = link, secure, planner, size, aggregate
        self._seed, self._min_updates, self._deadline_s, self._devices = seed, min_updates, deadline_s, devices
        self._hellos: dict[int, Hello] = {}

    def gather(self, asked: Asked) -> RoundResult:
        book = Book(told=asked.told)
        present = self._greet(asked, book)
        try:
            groups = self._form_groups(asked, present)
        except (ConfigError, RunError) as error:
            for node in present:
                asked.hear(Answer(node, None, str(error)))
            return self._result(asked, book, (), None, None, str(error))
        play(self._link, Deadlines(self._deadline_s, self._secure.phase_deadline_s), asked, groups, book)
        for node in book.failures:
            self._hellos.pop(node, None)  # it may come back as another process, with another key
        opened = [str(group.nodes[client]) for group in groups for client in _outcome(group).opened]
        return replace(self._close(asked, groups, book), opened=tuple(sorted(opened, key=int)))

    def forget_nodes(self) -> None:
        """A proof of a device key holds in one run alone, and a node may have a key for each."""
        self._hellos = {}

    def state(self) -> Tree:
        return {
            "hellos": {
                str(node): {"device": hello.device.hex(), "proof": hello.proof.hex(), "prgs": list(hello.prgs)}
                for node, hello in self._hellos.items()
            }
        }

    def restore(self, state: Tree) -> None:
        self._hellos = {
            int(node): Hello(bytes.fromhex(said["device"]), bytes.fromhex(said["proof"]), tuple(said["prgs"]))
            for node, said in state["hellos"].items()
        }

    def _greet(self, asked: Asked, book: Book) -> list[int]:
        """The nodes of the cohort whose device keys are known and may take part; asks those that are not known yet."""
        unknown = [node for node in asked.parcels if node not in self._hellos]
        contents = dict.fromkeys(unknown, greeting())
        for answer in self._link.ask(contents, asked.number, self._secure.phase_deadline_s):
            try:
                hello = read_hello(content_of(answer))
                self._admit(answer.node, hello)
            except (ValueError, PeerError) as error:
                book.lose(answer.node, FIRST, str(error))
            else:
                book.uplink_bytes += hello.nbytes
        present = []
        for node in asked.parcels:
            if node in self._hellos:
                present.append(node)
                continue
            book.lose(node, FIRST, f"no reply within {self._secure.phase_deadline_s:g} s")
            asked.hear(Answer(node, None, book.failures[node]))
        return present

    def _admit(self, node: int, hello: Hello) -> None:
        verify_hello(hello.device, hello.proof, self._link.run_id, node)
        if self._devices is not None and hello.device not in self._devices:
            raise PeerError(f"its device key {hello.device.hex()} is not in the file secure.devices")
        for other, known in list(self._hellos.items()):
            if known.device == hello.device:
                del self._hellos[other]  # the same device under a new node id: it has just proved that it is here
        self._hellos[node] = hello

    def _form_groups(self, asked: Asked, present: Sequence[int]) -> list[Group]:
        """Split who is there, by the round's seed, and open a protocol for each part."""
        sizes = group_sizes(len(present), self._secure)
        order = np.random.default_rng([self._seed, asked.number, 0x6E0]).permutation(len(present))
        parts = np.split(order, np.cumsum(sizes)[:-1]) if len(sizes) > 1 else [np.arange(len(present))]
        prg, question = self._choose_prg(present), asked.question
        work = work_hash(asked.model_hash(), question.task, question.program)
        return [self._open(asked.number, [present[place] for place in part], prg, work) for part in parts]

    def _choose_prg(self, present: Iterable[int]) -> str:
        """AES only where every device has instructions for it; ChaCha20 is fast everywhere."""
        if self._secure.prg != "auto":
            return _PRGS[self._secure.prg]
        aes = _PRGS["aes-ctr"]
        return aes if all(aes in self._hellos[node].prgs for node in present) else _PRGS["chacha20"]

    def _open(self, number: int, nodes: Sequence[int], prg: str, work: bytes) -> Group:
        plan = self._planner.sum_plan(number, len(nodes))
        agreed = replace(plan.settings, prg=prg).for_round(
            run=self._link.run_id,
            round_number=number,
            clients=len(nodes),
            count=plan.encoder.count,
            model_hash=work,
        )
        keys = {node: self._hellos[node].device for node in nodes}
        by_id = {device_id(key): node for node, key in keys.items()}
        if len(by_id) < len(nodes):
            raise RunError("two devices of the cohort have one id")
        server = Server(agreed, {device_id(key): key for key in keys.values()})
        return Group(plan, agreed, server, by_id, b"".join(keys.values()))

    def _close(self, asked: Asked, groups: Sequence[Group], book: Book) -> RoundResult:
        """Decode every sum there is, and make one update of them."""
        sums = [(group, outcome) for group in groups if (outcome := group.server.outcome) and outcome.sum is not None]
        for group in groups:
            for culprit in _outcome(group).culprits:
                book.lose(group.nodes[culprit], LAST, "it gave wrong shares")
        survivors = tuple(str(group.nodes[client]) for group, done in sums for client in done.survivors)
        if not sums:
            reason = next(done.aborted for group in groups if (done := _outcome(group)).aborted)
            return self._result(asked, book, (), None, None, reason)
        if len(survivors) < self._min_updates:
            return self._result(asked, book, survivors, None, None, f"fewer than {self._min_updates} good updates")
        decoded = [_decode(group, done) for group, done in sums]
        votes = [vote for _, vote in decoded if vote is not None]
        try:
            delta = self._joined([mean for mean, _ in decoded], [len(done.survivors) for _, done in sums])
        except (PeerError, RunError) as error:
            return self._result(asked, book, survivors, None, None, str(error))
        return self._result(asked, book, survivors, delta, sum(votes) if votes else None, None)

    def _joined(self, means: Sequence[NDArray[np.float64]], clients: Sequence[int]) -> NDArray[np.float64]:
        """One update of the groups' means, as the robust aggregator makes it."""
        if self._secure.groups == 1:
            return means[0]
        total = self._aggregate()
        for mean, count in zip(means, clients, strict=True):
            total.add(mean.astype(np.float32), count)
        return total.mean()

    def _result(
        self,
        asked: Asked,
        book: Book,
        survivors: tuple[str, ...],
        delta: NDArray[np.float64] | None,
        votes: float | None,
        unchanged: str | None,
    ) -> RoundResult:
        values = book.inputs * self._size
        return RoundResult(
            round=asked.number,
            delta=delta,
            clients=tuple(sorted(survivors, key=int)),
            failures=tuple(Failure(str(node), reason) for node, reason in book.failures.items()),
            train_loss=None,
            uplink_bytes=book.uplink_bytes,
            uplink_bits_per_parameter=8 * book.input_bytes / values if values else None,
            dropped_in=dict(book.dropped_in),
            votes=votes,
            unchanged=unchanged,
            downlink_bytes=book.downlink_bytes,
            declined=tuple(Failure(str(node), reason) for node, reason in book.declined.items()),
        )


def _outcome(group: Group) -> Outcome:
    assert group.server.outcome is not None
    return group.server.outcome


def _decode(group: Group, outcome: Outcome) -> tuple[NDArray[np.float64], float | None]:
    """The group's mean update, and its votes as if each client had one, whatever it weighs."""
    assert outcome.sum is not None
    weight = outcome.weight or len(outcome.survivors)
    mean, votes = group.plan.encoder.decode(outcome.sum, group.plan.parts or weight)
    return mean, None if votes is None else votes * len(outcome.survivors) / weight
