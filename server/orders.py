"""What the operator has asked of a run, and that it was heard."""

from __future__ import annotations

from server import commands
from server.run_store import RunStore


class Orders:
    """The commands of a run directory, each logged once, when it is read; a run that is resumed hears them all anew."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._heard: list[commands.Command] = []
        self._logged = max((data["id"] for _, data in store.events("command")), default=0)

    @property
    def newest(self) -> int:
        """The id of the newest command, of whatever name, that was heard; 0 if there is none."""
        return self._heard[-1].id if self._heard else 0

    def last(self, name: commands.Name) -> commands.Command | None:
        """The newest command of that name, None if nobody ever asked for it."""
        after = self.newest
        for command in commands.read(self._store.directory, after):
            if command.id > self._logged:
                self._store.append("command", {"id": command.id, "name": command.name.value, "by": command.by})
            self._heard.append(command)
        return next((one for one in reversed(self._heard) if one.name is name), None)

    def why_stop(self) -> str | None:
        """Why the run is to end after the round in progress; None if nobody has asked for that."""
        stop = self.last(commands.Name.STOP)
        return f"stopped by {stop.by}" if stop else None
