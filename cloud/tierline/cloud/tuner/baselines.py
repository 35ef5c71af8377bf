"""What others do, as smaller spaces of the same search, so that all are priced and measured alike.

- `device_only`: the whole network on the device.
- `cloud_only`: the image goes up as JPEG, as a user would upload it.
- `neurosurgeon`: the best single cut, features as they are, no exits (Kang et al., ASPLOS 2017); the input is JPEG.
- `ddnn`: one fixed cut behind the first exit, only its threshold is chosen, features as they are (Teerapittayanon et
  al., ICDCS 2017; their binary features need a network that was trained for them).
- `edgent`: one exit for all samples and one cut, no confidence (Li et al., 2018); the device runs what is below the
  cut, where the paper's edge server does.
- `spinn`: one cut, all exits below it with one common threshold, 8-bit features packed without loss (Laskaridis et al.,
  MobiCom 2020; confidence is the Bundle's exit rule, where the paper takes the largest softmax).

Deviations are in brackets; networks, exits and figures are the Bundle's. Where no choice of a baseline meets the goal,
it says so instead of giving one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from tierline.cloud.tuner.ladder import Ladder
from tierline.cloud.tuner.space import Space, all_cuts, all_thresholds, one_split, tiers_of
from tierline.cloud.tuner.statistics import Statistics
from tierline.core.coding import stage_names
from tierline.core.plan import Hierarchy
from tierline.core.profile import INPUT, OUTPUT
from tierline.core.types import Array, Tier

PACKED_8_BITS = ("affine:8", "affine:8+cabac", "affine:8+zstd")


def baselines(ladder: Ladder, hierarchy: Hierarchy) -> dict[str, Space]:
    """By name; those that need exits are left out where there are none."""
    tiers = tiers_of(hierarchy)
    everything = tuple(all_cuts(ladder, tiers))
    splits = tuple(one_split(ladder, tiers))
    names = tuple(name for name, _ in ladder.exits)
    device = [cuts for cuts in everything if cuts[Tier.DEVICE] == OUTPUT]
    cloud = [cuts for cuts in everything if all(cut == INPUT for cut in [*cuts.values()][:-1])]
    found = {
        "device_only": Space(tuple(device[:1]), ((),)),
        "cloud_only": Space(tuple(cloud), ((),), allows=is_upload),
        "neurosurgeon": Space(splits, ((),), allows=as_they_are),
    }
    if names:
        first_cut = ladder.exits[0][1]
        behind = tuple(cuts for cuts in splits if cuts[Tier.DEVICE] == first_cut)
        below = {name: ladder.at(cut) for name, cut in ladder.exits}
        found |= {
            "ddnn": Space(behind, (names[:1],), allows=as_they_are),
            "edgent": Space(splits, ((), *((name,) for name in names)), allows=as_they_are, thresholds=certain),
            "spinn": Space(
                splits,
                tuple(names[: index + 1] for index in range(len(names))),
                admits=partial(_all_below, ladder, below),
                allows=packed,
                thresholds=common,
            ),
        }
    return found


def is_upload(cut: str, token: str) -> bool:
    """JPEG of the input; features as they are."""
    return cut != INPUT or stage_names(token) == ("jpeg",)


def as_they_are(cut: str, token: str) -> bool:
    return is_upload(cut, token) and (cut == INPUT or token == "raw")


def packed(cut: str, token: str) -> bool:
    return is_upload(cut, token) and (cut == INPUT or token in PACKED_8_BITS)


def certain(statistics: Statistics, exits: Sequence[str], most: int) -> tuple[Array, bool]:
    """Every sample leaves at the exit."""
    return np.ones((1, len(exits))), True


def common(statistics: Statistics, exits: Sequence[str], most: int) -> tuple[Array, bool]:
    """One threshold for all exits."""
    grids, complete = zip(*(all_thresholds(statistics, (name,), most // len(exits)) for name in exits), strict=True)
    values = np.unique(np.concatenate([grid[:, 0] for grid in grids]))
    return np.repeat(values[:, np.newaxis], len(exits), axis=1), all(complete)


def _all_below(ladder: Ladder, below: Mapping[str, int], cuts: Mapping[Tier, str], exits: Sequence[str]) -> bool:
    """The exits are just those that the device gets to."""
    end = ladder.at(cuts[Tier.DEVICE])
    return {name for name, at in below.items() if at <= end} == set(exits)
