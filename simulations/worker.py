"""A client process of the simulation: `python -m simulations.worker READ_FD WRITE_FD` answers until its pipe closes."""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import signal
import sys

from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode

from edge_runtime import plugins
from simulations.artefact_faults import with_artefact_faults
from simulations.channel import Channel
from simulations.faults import App, with_faults
from simulations.grid import REMEMBERED, WorkerSetup, assume_identity


def main() -> None:
    end_with_parent()
    channel = Channel(int(sys.argv[1]), int(sys.argv[2]), remembers=REMEMBERED)
    try:
        setup: WorkerSetup = channel.receive()
        sys.path.extend(path for path in setup.sys_path if path not in sys.path)
        # Imported now, so that the time it takes is not counted against the first client.
        app: App = plugins.load_entry(setup.client_app)
        importlib.import_module(f"edge_runtime.train.{setup.trainer}")

        # One machine: nobody has enrolled anybody, and a line about it from each process says nothing.
        logging.getLogger("clients.device").setLevel(logging.ERROR)
        gc.freeze()  # what the imports left lives for good: 4 % of a client's time would go into visiting it again
        channel.send((None, None))
        serve(channel, with_artefact_faults(with_faults(app, setup.faults), setup.faults))
    except (EOFError, OSError):
        return  # the simulation is over


def end_with_parent() -> None:
    """Have the kernel end this process with its parent: a client that never returns would not see its pipe close."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def serve(channel: Channel, app: App) -> None:
    """Answer (message, context) pairs with (reply, state); an exception of the app becomes a Flower error."""
    while True:
        message, context = channel.receive()
        assume_identity(message.metadata.dst_node_id, context.run_id)
        channel.send((answer(app, message, context), context.state))


def answer(app: App, message: Message, context: Context) -> Message:
    """The app's reply, or an error reply as a SuperNode would send it."""
    try:
        return app(message, context)
    except Exception as error:  # whatever the client's code raises costs this client only
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


if __name__ == "__main__":
    main()
