"""One warm process that serves a SuperLink: pulls a message, runs the client app here, pushes the reply, and so on.

A stock `flower-supernode` starts a process for every message; here the app, the Program and the examples stay loaded.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from clients.records import adopt, read_run
from clients.superlink import HEARTBEAT_S, LinkDownError, NotEnrolledError, RunOverError, SuperLink

App = Callable[[Message, Context], Message]
Remember = Callable[[int], None]  # keeps the node's id for the next start

# How long to wait for the next message is a share of the time since the last one: a round is then late by as much at
# most, and a node that has had nothing to do for long asks seldom.
POLL_SHARE, POLL_MIN_S, POLL_MAX_S = 0.05, 0.2, 3.0
RETRY_MIN_S, RETRY_MAX_S = 0.5, 20.0
KEPT_RUNS = 2  # whose state is held in memory
_LOG = logging.getLogger(__name__)


class Agent:
    """Serves until `stop` is set. `known` is the node's id of the last time, 0 for none."""

    def __init__(
        self,
        link: SuperLink,
        app: App,
        node_config: Mapping[str, str | int | float | bool],
        *,
        known: int = 0,
        remember: Remember = lambda node_id: None,
    ) -> None:
        self._link, self._app, self._node_config = link, app, dict(node_config)
        self._known, self._remember = known, remember
        self._states: OrderedDict[int, RecordDict] = OrderedDict()
        self._stop = threading.Event()
        self._lost = threading.Event()  # the SuperLink no longer knows this node

    def stop(self) -> None:
        """Let `run` return once the message in hand is answered; may be called from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Join, serve, and come back after whatever breaks the line. Returns when stopped, offline by then."""
        heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        failures, last = 0, time.monotonic()
        while not self._stop.is_set():
            try:
                if not self._link.node_id or self._lost.is_set():
                    self._join()
                    last = time.monotonic()
                    if not heart.is_alive():
                        heart.start()
                served = self._serve_one()
                failures = 0
            except (LinkDownError, NotEnrolledError) as error:
                if isinstance(error, NotEnrolledError):
                    self._lost.set()
                self._back_off(failures, error)
                failures += 1
                continue
            now = time.monotonic()
            if served:
                last = now
            else:
                self._stop.wait(min(POLL_MAX_S, max(POLL_MIN_S, POLL_SHARE * (now - last))))
        if self._link.node_id:
            with contextlib.suppress(LinkDownError, NotEnrolledError):  # it will be missed in a minute
                self._link.leave()

    def _join(self) -> None:
        self._known = self._link.join(self._known)
        self._lost.clear()
        self._remember(self._known)
        _LOG.info("joined as node %s", self._known)

    def _serve_one(self) -> bool:
        """Whether there was a message."""
        try:
            message = self._link.pull()
            if message is None:
                return False
            started_s = time.monotonic()
            self._link.assume(message.metadata.run_id)
            reply = self._answer(message)
            self._link.push(reply, time.monotonic() - started_s)
        except RunOverError as error:
            _LOG.info("a message of a run that is over: %s", error)
        return True

    def _answer(self, message: Message) -> Message:
        about = message.metadata
        _LOG.info("%s message of run %s, round %s", about.message_type, about.run_id, about.group_id)
        context = Context(about.run_id, self._link.node_id, self._node_config, self._state(message), {})
        try:
            reply = self._app(message, context)
        except Exception as error:  # whatever an app raises is the round's to hear, and not the end of this process
            _LOG.warning("%s: %s", type(error).__name__, error, exc_info=_LOG.isEnabledFor(logging.DEBUG))
            # As a stock node words it.
            reason = f"{type(error)}:<'{error}'>"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        self._states[about.run_id] = context.state
        return reply

    def _state(self, message: Message) -> RecordDict:
        """Of the message's Flower run; of a new one what an older one left, if both are one run that goes on."""
        run_id, run = message.metadata.run_id, read_run(message)
        state = self._states.pop(run_id, RecordDict())
        if run:
            adopt(state, run, self._states.values())
        self._states[run_id] = state
        while len(self._states) > KEPT_RUNS:
            self._states.popitem(last=False)
        return state

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S * random.uniform(0.9, 1.0)):  # noqa: S311 - spreads a fleet's beats
            try:
                if not self._link.heartbeat():
                    self._lost.set()
            except LinkDownError as error:
                _LOG.debug("no heartbeat: %s", error)

    def _back_off(self, failures: int, error: Exception) -> None:
        """Wait, longer each time and never as long as other nodes do, so that they do not all come back at once."""
        wait_s = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
        _LOG.warning("%s; trying again in %.1f s", error, wait_s)
        self._stop.wait(wait_s)
