"""Maximum flow and minimum cut by Dinic's algorithm (Dinic 1970): level graphs and blocking flows, O(V^2 E)."""

from __future__ import annotations

from collections import deque


class FlowNetwork:
    """Directed, with finite capacities >= 0. Floats are exact enough: a blocking path leaves one edge at exactly 0."""

    def __init__(self, num_nodes: int) -> None:
        self._out: list[list[int]] = [[] for _ in range(num_nodes)]
        self._head: list[int] = []
        self._left: list[float] = []

    def add(self, tail: int, head: int, capacity: float, back: float = 0.0) -> None:
        """An edge, and its opposite with the capacity `back`."""
        for a, b, c in ((tail, head, capacity), (head, tail, back)):
            self._out[a].append(len(self._head))  # an edge and its opposite differ in the last bit of their number
            self._head.append(b)
            self._left.append(c)

    def max_flow(self, source: int, sink: int) -> float:
        """Push as much as goes; `reached` tells the minimum cut afterwards."""
        total = 0.0
        while (level := self._levels(source))[sink] >= 0:
            position = [0] * len(self._out)
            while (pushed := self._augment(source, sink, level, position)) > 0:
                total += pushed
        return total

    def reached(self, source: int) -> list[bool]:
        """The source's side of the minimum cut that has the fewest nodes on it."""
        return [level >= 0 for level in self._levels(source)]

    def _levels(self, source: int) -> list[int]:
        level = [-1] * len(self._out)
        level[source] = 0
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for edge in self._out[node]:
                head = self._head[edge]
                if self._left[edge] > 0 and level[head] < 0:
                    level[head] = level[node] + 1
                    queue.append(head)
        return level

    def _augment(self, source: int, sink: int, level: list[int], position: list[int]) -> float:
        """One path along rising levels; without recursion, since networks are deep."""
        path: list[int] = []
        node = source
        while node != sink:
            if position[node] == len(self._out[node]):
                if not path:
                    return 0.0
                edge = path.pop()
                node = self._head[edge ^ 1]
                position[node] += 1
                continue
            edge = self._out[node][position[node]]
            head = self._head[edge]
            if self._left[edge] > 0 and level[head] == level[node] + 1:
                path.append(edge)
                node = head
            else:
                position[node] += 1
        pushed = min(self._left[edge] for edge in path)
        for edge in path:
            self._left[edge] -= pushed
            self._left[edge ^ 1] += pushed
        return pushed
