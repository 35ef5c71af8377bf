from __future__ import annotations

import numpy as np
import pytest

from tierline.core import catalog
from tierline.core.errors import ConfigError


def spectrum(name: str, n: int) -> np.ndarray:
    return np.linalg.eigvalsh(catalog.make("topology", name).mixing_matrix(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 16, 32])
def test_spectra_are_the_closed_forms(n: int) -> None:
    cosines = np.cos(2 * np.pi * np.arange(n) / n)
    assert np.allclose(spectrum("ring", n), np.sort((1 + 2 * cosines) / 3), atol=1e-12)
    assert np.allclose(spectrum("lazy_ring", n), np.sort((2 + cosines) / 3), atol=1e-12)
    assert np.allclose(spectrum("complete", n), np.sort([1.0] + [0.0] * (n - 1)), atol=1e-12)


def test_spectral_gaps_of_the_ring() -> None:
    for n, gap in ((16, 0.051), (32, 0.013)):
        assert round(1 - spectrum("ring", n)[-2], 3) == gap
        assert abs(spectrum("ring", n)[0] + 1 / 3) < 1e-12
    assert spectrum("ring", 15)[0] > -1 / 3 + 1e-3
    assert spectrum("lazy_ring", 16)[0] > 1 / 3 - 1e-12


def test_rows_read_as_the_page_says() -> None:
    ring, lazy, complete = (catalog.make("topology", name) for name in ("ring", "lazy_ring", "complete"))
    assert np.allclose(ring.mixing_matrix(5)[0], [1 / 3, 1 / 3, 0, 0, 1 / 3])
    assert np.allclose(lazy.mixing_matrix(5)[0], [2 / 3, 1 / 6, 0, 0, 1 / 6])
    assert np.allclose(lazy.mixing_matrix(6), (ring.mixing_matrix(6) + np.eye(6)) / 2)
    assert np.allclose(ring.mixing_matrix(2), [[1 / 3, 2 / 3], [2 / 3, 1 / 3]])
    assert (ring.peers_in(5, 0), ring.peers_in(2, 1), ring.peers_in(1, 0)) == ((1, 4), (0,), ())
    assert complete.peers_in(4, 2) == (0, 1, 3)


@pytest.mark.parametrize("n", [2, 3, 8, 16])
def test_the_spectrum_of_the_star(n: int) -> None:
    assert np.allclose(spectrum("star", n), np.sort([0.0, *[1 - 1 / n] * (n - 2), 1.0]), atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_a_period_of_the_exponential_graph_reaches_the_mean(n: int) -> None:
    topology = catalog.make("topology", "exponential")
    assert topology.period(n) == max(1, np.log2(n))
    product = np.linalg.multi_dot([np.eye(n), *(topology.mixing_matrix(n, t) for t in range(topology.period(n)))])
    assert np.array_equal(product, np.full((n, n), 1 / n))


def test_the_exponential_graph_reads_as_the_page_says() -> None:
    topology = catalog.make("topology", "exponential")
    assert [topology.peers_out(16, 3, t) for t in range(5)] == [(4,), (5,), (7,), (11,), (4,)]
    assert [topology.peers_in(16, 3, t) for t in range(5)] == [(2,), (1,), (15,), (11,), (2,)]
    assert topology.mixing_matrix(16, 2)[3].nonzero()[0].tolist() == [3, 15]
    assert topology.period(5) == 3 and topology.period(1) == 1


@pytest.mark.parametrize(("n", "a", "b"), [(16, 4, 4), (12, 3, 4), (6, 2, 3), (7, 1, 7)])
def test_the_spectrum_of_the_torus(n: int, a: int, b: int) -> None:
    k, m = np.cos(2 * np.pi * np.arange(a) / a), np.cos(2 * np.pi * np.arange(b) / b)
    closed = (1 + 2 * k[:, None] + 2 * m[None, :]) / 5
    assert np.allclose(spectrum("torus", n), np.sort(closed.ravel()), atol=1e-12)


def test_the_spectrum_of_petersens_graph() -> None:
    assert np.allclose(spectrum("petersen", 10), np.sort([1.0, *[0.5] * 5, *[-0.25] * 4]), atol=1e-12)


def test_dyck_is_cubic_and_social_is_the_towns() -> None:
    dyck, social = catalog.make("topology", "dyck"), catalog.make("topology", "social")
    assert {len(dyck.peers_in(32, i)) for i in range(32)} == {3}
    assert dyck.peers_in(32, 0) == (1, 7, 8) and dyck.peers_in(32, 1) == (0, 2, 17)
    degrees = [len(social.peers_in(32, i)) for i in range(32)]
    assert sum(degrees[:18]) == sum(degrees[18:]) == 89 and (min(degrees), max(degrees)) == (2, 14)
    with pytest.raises(ConfigError, match="topology 'dyck': n = 16; this graph has exactly 32 nodes"):
        dyck.mixing_matrix(16)


def test_random_regular_graphs_mix_faster_than_rings() -> None:
    w = catalog.make("topology", "random_regular", degree=4, seed=1).mixing_matrix(32)
    assert np.count_nonzero(w, axis=1).max() == 5
    assert 1 - np.linalg.eigvalsh(w)[-2] > 10 * (1 - spectrum("ring", 32)[-2])
    other = catalog.make("topology", "random_regular", degree=4, seed=2).mixing_matrix(32)
    assert not np.array_equal(w, other)
    with pytest.raises(ConfigError, match="degree = 3 must be even"):
        catalog.make("topology", "random_regular", degree=3)


@pytest.mark.parametrize(("name", "depth"), [("chain", 15), ("binary_tree", 7)])
def test_trees_have_no_circle(name: str, depth: int) -> None:
    near = catalog.make("topology", name).mixing_matrix(16) > 0
    assert near.sum() == 16 + 2 * 15
    steps = [np.linalg.matrix_power(near.astype(np.float64), k).min() > 0 for k in (depth - 1, depth)]
    assert steps == [False, True]
