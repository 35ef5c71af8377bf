"""Federated averaging: some workers train from the server's model, and the mean of what they get is the next model.

    x <- sum_k n_k x_k / sum_k n_k,    x_k = E epochs of SGD from x on worker k's n_k samples

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1:
`share` is its C; epochs E, batch B and learning rate are those of the experiment's job.
Deviations: the mean is over the workers that took part, in fixed point (2^-32), so that no order of arrival and no
pre-adding on the way changes a bit. With `quorum` or `within_s` a round goes on without the slow. Tensors that are not
trained stay as the server has them. With `max_samples` the server sees every model, and refuses those that are not
finite or claim more samples than that; they still count towards `quorum`.
Status: checked (against the formula; one full-batch step per worker equals gradient descent on the pooled samples).
"""

from __future__ import annotations

from tierline.learning.strategy._rounds import MeanServer, PlainWorker


class Server(MeanServer):
    """Sends the model to this round's workers, and takes the mean of theirs."""


class Worker(PlainWorker):
    """Trains and sends its model, weighted by its samples."""
