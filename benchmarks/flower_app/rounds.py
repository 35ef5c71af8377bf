"""Flower's half of bench_flower.py: its own FedAvg, with a client that gives back the model that it got."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


class Timed(FedAvg):
    """FedAvg that notes when each round's model is there."""

    ends: list[float]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        found = super().aggregate_train(server_round, replies)
        self.ends.append(time.perf_counter())
        return found


@server.main()
def run_server(grid: Grid, context: Context) -> None:
    config = context.run_config
    x = np.linspace(-1, 1, int(config["values"]), dtype=np.float32)
    strategy = Timed(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_evaluate_nodes=0,
        min_available_nodes=1,
    )
    strategy.ends = []
    strategy.start(grid, ArrayRecord([x]), num_rounds=int(config["rounds"]))
    Path(str(config["out"])).write_text(json.dumps(strategy.ends))


@client.train()
def train(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
    return Message(content=content, reply_to=message)
