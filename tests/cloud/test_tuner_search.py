"""The search: exact against brute force, what it may not use, and what it says where nothing fits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import tuner_world as w

from tierline.cloud.tuner.choice import Proposal
from tierline.cloud.tuner.effects import Effects
from tierline.cloud.tuner.goal import Goal, Watts
from tierline.cloud.tuner.search import AXES, propose
from tierline.cloud.tuner.statistics import Statistics
from tierline.cloud.tuner.wire import part_framing, verdict_bytes
from tierline.core.plan import Hierarchy
from tierline.core.profile import Profile
from tierline.core.types import Tier

ORDER = [Tier.DEVICE, Tier.EDGE, Tier.CLOUD]
Row = tuple[float, ...]


def priced_by_hand(
    profile: Profile,
    path: list[str],
    cuts: list[str],
    statistics: Statistics,
    t: dict[str, float],
    codecs: list[str],
    precisions: Sequence[str] = ("float32",) * 3,
) -> tuple[Row, list[float]]:
    """(mean, bytes) of one choice, sample by sample; `cuts`, `codecs` and `precisions` by position on the path."""
    ladder, total, num_bytes = w.LADDER.cuts, [], 0.0
    hung = {cut: name for name, cut in w.LADDER.exits if name in t}
    for n in range(statistics.num_samples):
        ms, back, at, left = 0.0, 0.0, 0, False
        for position, name in enumerate(path):
            node = profile.nodes[name]
            while at < ladder.index(cuts[position]) and not left:
                first, last = ladder[at], ladder[at + 1]
                own = ("onnxruntime", precisions[position], 1)
                (run,) = (
                    x
                    for x in node.sections
                    if (x.first, x.last) == (first, last) and (x.engine, x.precision, x.batch) == own
                )
                ms += run.p50_ns / 1e6
                at += 1
                if last in hung:
                    exit_ = hung[last]
                    (head,) = (h for h in node.heads if h.exit == exit_ and (h.engine, h.precision, h.batch) == own)
                    ms += head.p50_ns / 1e6
                    score = statistics.outcomes.score_ES[statistics.outcomes.of(exit_), n]
                    left = t[exit_] >= 1 or score < t[exit_]
            if left or at == len(ladder) - 1:
                break
            link = profile.links[name]
            cut = cuts[position]
            lower = next(c for c in node.codecs if (c.cut, c.token) == (cut, codecs[position]))
            upper = next(
                c for c in profile.nodes[path[position + 1]].codecs if (c.cut, c.token) == (cut, codecs[position])
            )
            sent = lower.num_bytes + part_framing()
            num_bytes += sent
            ms += (lower.encode_ns + upper.decode_ns) / 1e6 + sent * 8e3 / link.up_bps + link.rtt_ms / 2
            back += verdict_bytes(3, len(path) - 1 - position) * 8e3 / link.down_bps + link.rtt_ms / 2
        total.append(ms + back)
    return (float(np.mean(total)), num_bytes / statistics.num_samples), total


def every_choice(
    hierarchy: Hierarchy, profile: Profile, statistics: Statistics, effects: Effects
) -> Iterator[tuple[Row, float]]:
    """((mean, bytes, loss), p99) of all choices there are."""
    path = [n.id for n in hierarchy.path_to_root("dev")]
    assert effects.plain is not None
    for ends in itertools.combinations_with_replacement(w.LADDER.cuts, len(path) - 1):
        cuts = [*ends, "output"]
        for names in [(), ("early",), ("late",), ("early", "late")]:
            scores = [statistics.outcomes.score_ES[statistics.outcomes.of(name)].tolist() for name in names]
            grids = [[*sorted(set(score))[1:], 1.0] for score in scores]
            crossed = [cut for cut in dict.fromkeys(cuts) if cut != "output"]
            for values in itertools.product(*grids):
                t = dict(zip(names, values, strict=True))
                for tokens in itertools.product(("raw", "affine:4"), repeat=len(crossed)):
                    by_cut = dict(zip(crossed, tokens, strict=True))
                    codecs = [by_cut.get(cut, "") for cut in cuts]
                    figures, _ = priced_by_hand(profile, path, cuts, statistics, t, codecs)
                    right = right_by_hand(statistics, t)
                    loss = statistics.quality() - right
                    for cut, token in by_cut.items():
                        if token != "raw":
                            loss += right_by_hand(effects.plain, t) - right_by_hand(effects.coded[cut, token], t)
                    yield (*figures, loss), 0.0


def test_precisions_are_searched_as_brute_force_does() -> None:
    """Every precision on every node, whose loss is that of the range which it runs."""
    lower = ("float32", "float16", "int8")
    statistics = w.statistics(num=6)
    profile, effects = w.profile(w.TWO, precisions=lower), w.effects(statistics, precisions=lower[1:])
    assert effects.plain is not None
    goal, found = Goal("latency_mean_ms", max_quality_loss=0.25), list[Row]()
    for cut in w.LADDER.cuts:
        for names in [(), ("early",), ("late",), ("early", "late")]:
            scores = [statistics.outcomes.score_ES[statistics.outcomes.of(name)].tolist() for name in names]
            grids = [[*sorted(set(score))[1:], 1.0] for score in scores]
            # A node that runs nothing has one setting, not three.
            own = [lower, lower if cut != "output" else lower[:1]]
            if cut == "input":
                own[0] = lower[:1]
            tokens = ("raw", "affine:4") if cut != "output" else ("",)
            for values, token, mine in itertools.product(itertools.product(*grids), tokens, itertools.product(*own)):
                t = dict(zip(names, values, strict=True))
                figures, _ = priced_by_hand(
                    profile, ["dev", "cloud"], [cut, "output"], statistics, t, [token, ""], mine
                )
                loss = statistics.quality() - right_by_hand(statistics, t)
                if token == "affine:4":
                    loss += right_by_hand(effects.plain, t) - right_by_hand(effects.coded[cut, token], t)
                for ends, precision in zip([("input", cut), (cut, "output")], mine, strict=True):
                    if precision != "float32":
                        there = effects.computed[(*ends, precision)]
                        loss += right_by_hand(effects.plain, t) - right_by_hand(there, t)
                found.append((*figures, loss))
    all_ = np.round(np.array(found), 6)
    beaten = [(np.all(all_ <= row, axis=1) & np.any(all_ < row, axis=1)).any() for row in all_]
    proposal = propose(w.LADDER, statistics, profile, w.TWO, goal, effects=effects, num_classes=3)
    np.testing.assert_allclose(rows(proposal), np.unique(all_[~np.array(beaten)], axis=0), atol=2e-6)
    best = min(tuple(row) for row in all_[all_[:, 2] <= 0.25 + 1e-9])
    assert proposal.chosen.predicted.latency_mean_ms == pytest.approx(best[0], abs=1e-5)
    assert {precision for _, precision in proposal.chosen.choice.engines.values()} != {"float32"}


def test_a_precision_that_was_not_tried_is_left_out() -> None:
    statistics = w.statistics(num=9)
    profile, effects = w.profile(w.TWO, precisions=("float32", "int8")), w.effects(statistics)
    proposal = propose(w.LADDER, statistics, profile, w.TWO, Goal(), effects=effects, num_classes=3)
    assert {p for point in proposal.front for _, p in point.choice.engines.values()} == {"float32"}
    assert any(line.startswith("precision int8 on dev: ") for line in proposal.left_out)


def right_by_hand(s: Statistics, t: dict[str, float]) -> float:
    found, right = s.outcomes, 0.0
    for n in range(s.num_samples):
        left = (found.of(e) for e in s.exits if e in t and (t[e] >= 1 or found.score_ES[found.of(e), n] < t[e]))
        right += found.quality_ES[next(left, -1), n]
    return right / s.num_samples


def rows(proposal: Proposal) -> np.ndarray:
    found = [[getattr(p.predicted, name) for name in AXES] for p in proposal.front]
    return np.array(sorted(np.round(found, 6).tolist()))


@pytest.mark.parametrize("hierarchy", [w.TWO, w.THREE], ids=["two tiers", "three tiers"])
def test_front_and_choice_are_those_of_brute_force(hierarchy: Hierarchy) -> None:
    statistics = w.statistics(num=6 if hierarchy is w.THREE else 9)
    profile, effects = w.profile(hierarchy), w.effects(statistics)
    goal = Goal("latency_mean_ms", max_quality_loss=0.12)
    all_ = np.array([row for row, _ in every_choice(hierarchy, profile, statistics, effects)])
    all_ = np.round(all_, 6)
    beaten = [(np.all(all_ <= row, axis=1) & np.any(all_ < row, axis=1)).any() for row in all_]
    front = np.unique(all_[~np.array(beaten)], axis=0)
    found = propose(w.LADDER, statistics, profile, hierarchy, goal, effects=effects, num_classes=3)
    assert found.exact
    np.testing.assert_allclose(rows(found), front, atol=2e-6)
    best = min(tuple(row) for row in all_[all_[:, 2] <= 0.12 + 1e-9])
    assert found.chosen.predicted.latency_mean_ms == pytest.approx(best[0], abs=1e-5)
    assert found.num_choices == len(all_)


@pytest.mark.parametrize("goal", [
    Goal("latency_mean_ms", max_quality_loss=0.05),
    Goal("latency_p99_ms", max_quality_loss=0.1, max_bytes_per_sample=400),
    Goal("bytes_per_sample", max_latency_p50_ms=60, max_quality_loss=0.02),
    Goal("latency_mean_ms", max_quality_loss=0.1, rate_per_s=30),
    Goal("energy_j", max_quality_loss=0.1, watts={"device": Watts(4.0, 1.5)}),
], ids=lambda goal: f"{goal.minimise}, {goal.rate_per_s:g}/s")  # fmt: skip
@pytest.mark.parametrize("mbit", [0.3, 20.0])
def test_bound_changes_nothing(goal: Goal, mbit: float) -> None:
    statistics = w.statistics(num=8)
    tokens = ("raw", "affine:4", "affine:2")
    profile, effects = w.profile(w.THREE, mbit, codecs=tokens, engines=2), w.effects(statistics, tokens[1:])
    same_with_and_without(statistics, profile, w.THREE, goal, effects)


def test_bound_changes_nothing_among_precisions() -> None:
    statistics, lower = w.statistics(num=8), ("float32", "int8")
    profile = w.profile(w.TWO, codecs=("raw", "affine:4", "affine:2"), engines=2, precisions=lower)
    effects = w.effects(statistics, ("affine:4", "affine:2"), lower[1:])
    same_with_and_without(statistics, profile, w.TWO, Goal("latency_mean_ms", max_quality_loss=0.1), effects)


def same_with_and_without(
    statistics: Statistics, profile: Profile, hierarchy: Hierarchy, goal: Goal, effects: Effects
) -> None:
    with_bound, without = (
        propose(w.LADDER, statistics, profile, hierarchy, goal, effects=effects, num_classes=3, bound=bound)
        for bound in (True, False)
    )
    assert with_bound.num_priced < without.num_priced == without.num_choices == with_bound.num_choices
    assert with_bound.chosen == without.chosen
    np.testing.assert_array_equal(rows(with_bound), rows(without))
