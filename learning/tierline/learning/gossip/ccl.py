"""Cross-feature contrastive loss: features of one's model are drawn to those of the neighbours' models, and to the
mean features of their class over the neighbourhood. No data leave a peer.

    loss_i = CE + lambda_m sum_j mean |h_i(b) - h_j(b)|^2 + lambda_d mean |h_i(b) - c[y]|^2
    r = W x - x;   m <- beta m + g(x) - r / lr;   x <- x - lr m

h_j(b) are the features of the own batch under neighbour j's model; c[y] is the mean feature of class y over the own
batch and the batches of all neighbours under the own model, which they send back as sums and counts. Aketi, Roy,
"Cross-feature Contrastive Loss for Decentralized Deep Learning on Heterogeneous Data", WACV 2024, with quasi-global
momentum (`qg_dsgdm`, form "aketi") as in the authors' code.
Deviations: only the classes that a batch holds travel. m is kept as a step, lr m. The learning rate's change scales it.
Sends one model to all, then per neighbour the sums of one feature per class present, its count and its name; with
lambda_d = 0 no second message. Runs 1 + neighbours models forward. State: m.
Status: partial (equation; lambda = 0 is `qg_dsgdm`; accuracies were not repeated).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, ConfigError, ShapeMismatch
from tierline.core.types import Array, NodeId
from tierline.learning.compute import LABELS, Match
from tierline.learning.effects import Effects, Inbox, Message, exchange, gradient, outputs, params
from tierline.learning.errors import RuleError
from tierline.learning.gossip._local import Gossip, check_share
from tierline.learning.gossip._mixing import ratio, residual, to_all
from tierline.learning.rule import NodeInfo, Traits, Turn


class Peer(Gossip):
    """`features` names the model's output that is matched: float32[B, F]."""

    traits = Traits(tolerates_loss=False, per_edge_state=False, conserves="mean", directed=False)
    kept = ("x", "m", "lr")

    def __init__(
        self,
        *,
        lambda_m: float = 0.1,
        lambda_d: float = 0.1,
        features: str = "features",
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        check_share("momentum", momentum)
        if lambda_m < 0.0 or lambda_d < 0.0:
            raise ConfigError(f"ccl: lambda_m = {lambda_m} and lambda_d = {lambda_d} must be at least 0")
        self._lambda_m, self._lambda_d, self._features = lambda_m, lambda_d, features
        self._momentum, self._nesterov, self._weight_decay = momentum, nesterov, weight_decay

    def start(self, x: Params, node: NodeInfo) -> None:
        super().start(x, node)
        self.m, self.lr = x.zeros_like(), 0.0

    def turn(self, t: Turn) -> Effects[None]:
        got = yield from exchange("x", to_all(t, x=self.x), t.peers_in)
        terms = yield from self._terms(t, got)
        g = (yield from gradient(self.x, t.batch, terms)).values
        if self._weight_decay:
            g = g + self._weight_decay * self.x
        scale = ratio(t.lr, self.lr)
        y = t.lr * g - scale * residual(t, self.x, got)
        self.m = self._momentum * scale * self.m + y
        self.x = self.x - (y + self._momentum * self.m if self._nesterov else self.m)
        self.lr = t.lr

    def _terms(self, t: Turn, got: Inbox) -> Effects[tuple[Match, ...]]:
        """What is added to the loss. The features are asked for once per neighbour, whatever they are used for."""
        if not self._lambda_m and not self._lambda_d:
            return ()
        labels = t.batch.get(LABELS)
        if labels is None:
            raise RuleError(f"ccl: the batch holds no {LABELS!r}; it matches features by class")
        across: dict[NodeId, Array] = {}
        for j in got:
            across[j] = (yield from outputs(params(got[j], "x", self.x), t.batch, self._features))[self._features]
        terms = [Match(self._features, h, self._lambda_m) for h in across.values()] if self._lambda_m else []
        if self._lambda_d:
            own = (yield from outputs(self.x, t.batch, self._features))[self._features]
            out = {j: class_sums(h, labels) for j, h in across.items()}
            back = yield from exchange("classes", out, t.peers_in)
            target = class_means([class_sums(own, labels), *back.values()], labels, own.shape[1])
            terms.append(Match(self._features, target, self._lambda_d))
        return tuple(terms)


def class_sums(features_BF: Array, labels_B: Array) -> Message:
    """Per class present: its name, the sum of its features, and how many samples it has."""
    classes, place_B, counts = np.unique(labels_B, return_inverse=True, return_counts=True)
    sums: npt.NDArray[np.float32] = np.zeros((len(classes), features_BF.shape[1]), np.float32)
    np.add.at(sums, place_B.reshape(-1), features_BF)
    return {"classes": classes.astype(np.int64), "sums": sums, "counts": counts.astype(np.int64)}


def class_means(messages: list[Message], labels_B: Array, num_features: int) -> Array:
    """For each sample the mean feature of its class in all messages: float32[B, F]. Raises BadFrame, ShapeMismatch."""
    totals = {int(label): np.zeros(num_features) for label in np.unique(labels_B)}
    counts = dict.fromkeys(totals, 0)
    for message in messages:
        classes, sums, of_class = (message.get(name) for name in ("classes", "sums", "counts"))
        if not (isinstance(classes, np.ndarray) and isinstance(sums, np.ndarray) and isinstance(of_class, np.ndarray)):
            raise BadFrame("ccl: a message of class sums lacks classes, sums or counts")
        if sums.shape != (len(classes), num_features) or len(of_class) != len(classes):
            raise ShapeMismatch(f"ccl: class sums are {list(sums.shape)}, expected [{len(classes)}, {num_features}]")
        for label, total, count in zip(classes.tolist(), sums, of_class.tolist(), strict=True):
            if label in totals:
                totals[label] += total
                counts[label] += count
    return np.stack([totals[label] / counts[label] for label in labels_B.tolist()]).astype(np.float32)
