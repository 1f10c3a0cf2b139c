"""Jobs, one after another. A job is one run directory, and as many Flower runs on it as it takes.

Flower loses a run whose server app or SuperLink dies. Ours goes on: the next Flower run is told to resume the run
directory, which holds all that the last closed round left. What ends a job is its own end, an error of its own
(settings, too few devices), an operator, or a number of starts in a row that closed no round.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from server import commands
from server.serve.control import Control, ControlError, Run
from server.serve.processes import end
from server.serve.progress import RunLog, UnreadableError
from server.serve.state import Job, JobState, State, Stop

# A server app that was started, or has ended, shows within this time.
_NOTICE_S = 5.0
_LOOK_S = 0.5  # between questions to the SuperLink
_START_S = 60.0
_MAX_WAIT_S = 30.0
_APP_RAISED = "ServerApp failed with exception: "
# How a run's log tells of an end that was forced on it.
_FORCED = ("SystemExit", "KeyboardInterrupt")


@dataclass
class _Attempt:
    """One Flower run of the job. `last_event` and `closed` are as they were when it began."""

    job: str
    run: int
    begun_s: float
    alive_s: float
    last_event: int
    closed: int
    look_s: float = 0.0
    asked_to_stop: bool = False


class Player:
    """`apps` gives the server app's processes, `tell` takes status lines. Times are of a monotonic clock."""

    def __init__(
        self,
        state: State,
        control: Control,
        bundle: bytes,
        attempts: int,
        apps: Callable[[], Sequence[psutil.Process]],
        tell: Callable[[str], None],
    ) -> None:
        self._state, self._control, self._bundle = state, control, bundle
        self._attempts, self._apps, self._tell = attempts, apps, tell
        self._attempt: _Attempt | None = None
        self._fruitless = 0  # starts in a row that closed no round
        self._again_s = 0.0

    def step(self, now_s: float) -> None:
        """Whatever is to be done now; ControlError if the SuperLink is not there."""
        job = self._state.next_job()
        if job is None:
            return
        try:
            if self._attempt is None:
                if job.state is JobState.QUEUED:
                    self._fruitless = 0
                self._begin(job, now_s)
            else:
                self._watch(job, self._attempt, now_s)
        except UnreadableError as error:  # one damaged run, and not the end of the server
            end(self._apps(), patience_s=2.0)
            self._end(job.name, JobState.FAILED, str(error))

    def interrupted(self, reason: str, now_s: float) -> None:
        """The SuperLink died, and took the Flower run with it."""
        if self._attempt is not None:
            end(self._apps(), patience_s=2.0)
            self._lost(reason, now_s)  # its Flower run is stopped with all others when a SuperLink is back

    @property
    def playing(self) -> str | None:
        return self._attempt.job if self._attempt else None

    def _begin(self, job: Job, now_s: float) -> None:
        directory = self._state.run_directory(job.name)
        log = RunLog(directory)
        if log.finished() is not None:
            self._done(job.name, log)
        elif job.stop is Stop.NOW or (job.stop is Stop.AFTER_ROUND and not log.begun()):
            self._end(job.name, JobState.STOPPED, "by an operator")
        elif now_s >= self._again_s:
            end(self._apps(), patience_s=2.0)  # one that lingers holds the run directory
            settings = {"run.out": str(directory), "run.resume": log.begun()}
            if not log.begun() and directory.exists():
                shutil.rmtree(directory)  # it died before there was anything to resume
            config = settings if log.begun() else {**job.config, **settings}
            last, closed = log.last_event(), log.closed_rounds()
            self._state.job_started(job.name)
            try:
                run = self._control.start_run(self._bundle, config)
            except ControlError as error:
                if not error.told:
                    raise
                self._end(job.name, JobState.FAILED, str(error))
                return
            self._attempt = _Attempt(job.name, run, now_s, now_s, last, closed)
            self._tell(f"run {job.name}: " + (f"goes on after round {closed}" if log.begun() else "begins"))

    def _watch(self, job: Job, attempt: _Attempt, now_s: float) -> None:
        apps = self._apps()
        if apps:
            attempt.alive_s = now_s
        if now_s < attempt.look_s and job.stop is Stop.NO:
            return
        attempt.look_s = now_s + _LOOK_S
        run = self._control.run(attempt.run)
        directory = self._state.run_directory(job.name)
        if job.stop is Stop.AFTER_ROUND and not attempt.asked_to_stop and directory.is_dir():
            commands.send(directory, commands.Name.STOP, "hedgerow run --stop")
            attempt.asked_to_stop = True
        if job.stop is Stop.NOW:
            self._control.stop_run(attempt.run)
            end(apps)
            self._end(job.name, JobState.STOPPED, "by an operator, at once")
        elif run.outcome and (not apps or now_s - attempt.begun_s > _START_S):
            end(apps)
            self._judge(run, RunLog(directory), attempt, now_s)
        elif run.pending and now_s - attempt.begun_s < _START_S:
            attempt.alive_s = now_s  # nobody has taken it up yet
        elif not run.outcome and now_s - attempt.alive_s > _NOTICE_S:
            self._control.stop_run(attempt.run)
            self._lost("the server app was not started" if run.pending else "the server app died", now_s)

    def _judge(self, run: Run, log: RunLog, attempt: _Attempt, now_s: float) -> None:
        """Whether the Flower run's end is the job's own."""
        error = log.error(attempt.last_event)
        if log.finished() is not None:
            self._done(attempt.job, log)
        elif error and attempt.asked_to_stop and not log.closed_rounds():
            self._end(attempt.job, JobState.STOPPED, "by an operator")  # there is no model to end with
        elif error and not error.startswith(_FORCED):
            self._end(attempt.job, JobState.FAILED, error)
        elif not error and run.details.startswith(_APP_RAISED):
            self._end(attempt.job, JobState.FAILED, run.details.removeprefix(_APP_RAISED))
        else:
            self._lost(f"the server app ended: {error or run.details or run.outcome}", now_s)

    def _lost(self, reason: str, now_s: float) -> None:
        """The Flower run is no more; the job may go on in another."""
        assert self._attempt is not None
        attempt, self._attempt = self._attempt, None
        closed = RunLog(self._state.run_directory(attempt.job)).closed_rounds()
        self._fruitless = 1 if closed > attempt.closed else self._fruitless + 1
        if self._fruitless >= self._attempts:
            text = f"{self._fruitless} starts in a row closed no round (limits.attempts); the last: {reason}"
            self._end(attempt.job, JobState.FAILED, text)
        else:
            self._tell(f"run {attempt.job}: {reason}; {closed} rounds are closed")
            self._again_s = now_s + (0.0 if self._fruitless == 1 else min(2.0**self._fruitless, _MAX_WAIT_S))

    def _done(self, name: str, log: RunLog) -> None:
        self._end(name, JobState.DONE, str((log.finished() or {}).get("stopped") or ""))

    def _end(self, name: str, state: JobState, reason: str) -> None:
        self._attempt, self._fruitless, self._again_s = None, 0, 0.0
        self._state.job_ended(name, state, reason)
        self._tell(f"run {name}: {state}" + (f" ({reason})" if reason else ""))
