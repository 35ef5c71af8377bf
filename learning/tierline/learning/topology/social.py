"""Who met whom in a small town: 18 women and 14 events, an edge where a woman was at an event. Irregular on purpose.

Nodes 0..17 are the women, 18..31 the events; degrees run from 2 to 14. Davis, Gardner, Gardner, "Deep South",
University of Chicago Press 1941, as a test of decentralised learning in Koloskova, Lin, Stich, Jaggi, "Decentralized
Deep Learning with Arbitrary Communication Compression", ICLR 2020. Deviations: Metropolis weights, where the authors
build theirs from the degrees in another way; a node's number says nothing about its degree.
Status: partial (number of edges and degrees; the authors' weights were not found written down).
"""

from __future__ import annotations

from tierline.learning.topology._graph import OfOneSize

_EVENTS_OF = (
    (1, 2, 3, 4, 5, 6, 8, 9),
    (1, 2, 3, 5, 6, 7, 8),
    (2, 3, 4, 5, 6, 7, 8, 9),
    (1, 3, 4, 5, 6, 7, 8),
    (3, 4, 5, 7),
    (3, 5, 6, 8),
    (5, 6, 7, 8),
    (6, 8, 9),
    (5, 7, 8, 9),
    (7, 8, 9, 12),
    (8, 9, 10, 12),
    (8, 9, 10, 12, 13, 14),
    (7, 8, 9, 10, 12, 13, 14),
    (6, 7, 9, 10, 11, 12, 13, 14),
    (7, 8, 10, 11, 12),
    (8, 9),
    (9, 11),
    (9, 11),
)


class Social(OfOneSize):
    """Undirected, n = 32."""

    name = "social"
    num_nodes = 32
    all_edges = tuple((woman, 17 + event) for woman, events in enumerate(_EVENTS_OF) for event in events)
