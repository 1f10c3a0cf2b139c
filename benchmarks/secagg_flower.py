"""One round of Flower's SecAgg+ with its defaults for range, levels and modulus; see `secagg_rounds.py`.

Its real `secaggplus_mod` at the clients and its real `SecAggPlusWorkflow` at the server, with nothing between them but
Flower's own serialisation, which is not counted as anybody's time. Nor is what is no part of secure aggregation: the
model that goes down has one value, and the strategy takes the sum as it comes. A client that drops answers with an
error instead of its masked vector.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.server import LegacyContext, SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from secagg_rounds import CLIP, FLOWER_LEVELS, Figures, Meter, Round, answer, floats, levels

from simulations.grid import SERVER_NODE_ID, assume_identity

STAGE, MASKED = "stage", "collect_masked_vectors"
EXAMPLES = 1000  # the default max_weight, so that a client's weight is 1 and its values stay on the grid


class TakesTheSum(FedAvg):
    """Every result holds the same aggregate: averaging them once more would count against Flower."""

    def aggregate_fit(self, server_round, results, failures):  # type: ignore[no-untyped-def]
        return results[0][1].parameters, {}


class Cohort:
    """In a Grid's place: each message goes to its client at once."""

    def __init__(self, asked: Round, meter: Meter) -> None:
        self._asked, self._meter = asked, meter
        self._contexts = {client: Context(1, client, {}, RecordDict(), {}) for client in range(1, asked.clients + 1)}
        self.away_s = 0.0  # CPU time that is not the server's

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        began = time.process_time()
        replies = [self._ask(message) for message in messages]
        self.away_s += time.process_time() - began
        return replies

    def _ask(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        client = node - 1  # Flower's ids start at 1
        wire = recorddict_to_proto(message.content).SerializeToString()
        content = recorddict_from_proto(ProtoRecordDict.FromString(wire))
        stage = str(content.config_records["secaggplus_configs"][STAGE]) if content.config_records else ""
        arrived = Message(content, dst_node_id=node, message_type=message.metadata.message_type, group_id="1")
        if stage == MASKED and client in self._asked.dropped:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
        fitted = self._fitted(client, arrived) if stage == MASKED else None
        reply = self._meter.of_client(
            client, stage, secaggplus_mod, arrived, self._contexts[node], lambda _message, _context: fitted
        )
        self._meter.received[client] += len(wire)
        self._meter.sent[client] += recorddict_to_proto(reply.content).ByteSize()
        return Message(reply.content, reply_to=message)

    def _fitted(self, client: int, arrived: Message) -> Message:
        """What training gives; made before the clock starts."""
        parameters = ndarrays_to_parameters([floats(client, self._asked.values)])
        result = FitRes(Status(Code.OK, ""), parameters, EXAMPLES, {})
        return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=arrived)


def run(asked: Round) -> Figures:
    assume_identity(SERVER_NODE_ID)
    random.seed(0)  # of its ring
    meter = Meter()
    cohort = Cohort(asked, meter)
    manager = SimpleClientManager()
    for node in range(1, asked.clients + 1):
        manager.register(GridClientProxy(node, cohort, 1))  # type: ignore[arg-type]
    strategy = TakesTheSum(fraction_fit=1.0, min_fit_clients=2, min_available_clients=2)
    context = LegacyContext(
        Context(1, SERVER_NODE_ID, {}, RecordDict(), {}), strategy=strategy, client_manager=manager
    )  # fmt: skip
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    model = ndarrays_to_parameters([np.zeros(1, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(model, True)
    workflow = SecAggPlusWorkflow(num_shares=asked.neighbours + 1, reconstruction_threshold=asked.threshold)
    began = time.process_time()
    workflow(cohort, context)  # type: ignore[arg-type]
    meter.server["all"] = time.process_time() - began - cohort.away_s
    check(asked, context)
    return meter.figures(asked.dropped)


def check(asked: Round, context: LegacyContext) -> None:
    """The mean that Flower gives, as the sum of levels that it is of."""
    record = context.state.array_records[MAIN_PARAMS_RECORD]
    (mean,) = parameters_to_ndarrays(compat.arrayrecord_to_parameters(record, True))
    survivors = [client for client in range(asked.clients) if client not in asked.dropped]
    total = (mean.astype(np.float64) + CLIP) * (len(survivors) * FLOWER_LEVELS / (2 * CLIP))
    expected = np.sum([levels(client, asked.values) for client in survivors], axis=0)
    if mean.shape != expected.shape or not np.allclose(total, expected, rtol=0, atol=0.01):
        raise SystemExit("the sum is not the exact one")


if __name__ == "__main__":
    answer(sys.argv[1], run)
