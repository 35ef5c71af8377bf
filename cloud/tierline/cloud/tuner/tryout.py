"""Measures what codecs and precisions do to answers: the calibration images through the network, once as it is, once
for every codec at every cut with the feature there coded and decoded, and once for every range of pieces and every
precision with that range computed in it.

Results are kept in a folder by the digests of all that they depend on. B is the batch of all images.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tierline.cloud.tuner.effects import Effects
from tierline.cloud.tuner.statistics import Statistics
from tierline.core import catalog
from tierline.core.bundle import Bundle, Section
from tierline.core.candidates import INPUT, OUTPUT, Outcomes, candidates_of, read_outcomes
from tierline.core.coding import codec_for
from tierline.core.errors import BundleError, CodecError, ShapeMismatch
from tierline.core.flow.levels import LOGITS
from tierline.core.preprocess import Preprocessor
from tierline.core.protocols import Engine, ExitRule, Task
from tierline.core.types import FLOAT32, Answer, Array, TensorSpec

MOST = 1024
"""Images that are run."""


def measure_effects(
    bundle: Bundle,
    tokens: Iterable[str],
    *,
    precisions: Iterable[str] = (),
    images: Array | None = None,
    truths: Array | None = None,
    keep: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Effects:
    """Try codecs at all cuts, and precisions below float32 in all ranges, on `images` (uint8, with their truths);
    default: those that the Bundle keeps, on which precisions are calibrated in any case.

    A codec that does not take a cut's tensor has no effect there. Raises BundleError.
    """
    outcomes = read_outcomes(bundle)
    if images is None:
        images, truths = outcomes.images, outcomes.truth_S[: len(outcomes.images)]
    if not len(images):
        raise BundleError(f"{bundle.folder}: keeps no calibration images to try codecs on; give some by --samples")
    assert truths is not None
    images, truths = images[:MOST], truths[:MOST]
    tokens, lower = tuple(dict.fromkeys(tokens)), sorted({*precisions} - {FLOAT32})
    about = "\n".join([bundle.digest, *tokens, "", *lower])
    digest = hashlib.sha256(about.encode() + images.tobytes() + truths.tobytes()).hexdigest()
    path = None if keep is None else keep / f"effects-{digest[:24]}.npz"
    if path is not None and path.is_file():
        with contextlib.suppress(*UNREADABLE):  # a damaged one is measured anew
            return read_effects(path, outcomes)
    tryout = Tryout(bundle, images, truths)
    plain = tryout.plain
    coded: dict[tuple[str, str], Outcomes] = {}
    lossless: set[tuple[str, str]] = set()
    for cut in tryout.cuts[:-1]:
        for token in tokens:
            found = tryout.coded(cut, token)
            if found is plain:
                lossless.add((cut, token))
            elif found is not None:
                coded[cut, token] = found
        say(f"{cut}: {len(tokens)} codecs tried on {len(images)} images")
    computed: dict[tuple[str, str, str], Statistics] = {}
    for precision in lower:
        for first, last, outcomes in tryout.computed(precision):
            computed[first, last, precision] = Statistics(outcomes)
        say(f"{precision} tried on {len(images)} images")
    tryout.close()
    effects = Effects(
        Statistics(plain), {key: Statistics(value) for key, value in coded.items()}, frozenset(lossless), computed
    )
    if path is not None:
        try:
            write_effects(path, effects)
        except OSError as error:
            say(f"{path}: what was tried is not kept for the next time ({error.strerror})")
    return effects


class Tryout:
    """The pieces and heads of a Bundle with candidates, and a batch of images on its way through them."""

    def __init__(self, bundle: Bundle, images: Array, truths: Array) -> None:
        manifest = bundle.manifest
        self._cuts = candidates_of(manifest).cuts
        self.cuts = [cut.name for cut in self._cuts]
        self._truths = [int(truth) for truth in truths]
        self._task: Task = catalog.make("task", manifest.task, labels=manifest.labels)

        self._bundle = bundle
        self._exits = {c.name: c.exit for c in self._cuts if c.exit is not None}
        self._calibration: dict[str, Array] = {}
        self._pieces, self._heads = self._engines(FLOAT32)
        self._rules: dict[str, ExitRule] = {cut: catalog.make("exit", e.rule) for cut, e in self._exits.items()}
        self._preprocess = Preprocessor(manifest.preprocess)
        self._features: dict[str, Array] = {INPUT: self._preprocess.many(images)}
        self._answers: dict[str, list[Answer]] = {}
        self._scores: dict[str, Array] = {}
        self._climb(INPUT, self._features[INPUT], self._features, self._scores, self._answers)
        self.plain = self._outcomes(self._scores, self._answers)

    def coded(self, cut: str, token: str) -> Outcomes | None:
        """With the feature at a cut coded and decoded: `plain` itself where nothing is lost, None where the codec does
        not take it."""
        codec, x_B = codec_for(token), self._features[cut]
        is_image = cut == INPUT and codec.dtypes == ("uint8",)
        sent_B = self._preprocess.pixels(x_B) if is_image else x_B
        try:
            payload = codec.encode(sent_B)
            back_B = codec.decode(payload, TensorSpec(sent_B.dtype.name, sent_B.shape[1:]), max_rows=len(sent_B))
        except (CodecError, ShapeMismatch):
            return None
        if np.array_equal(back_B, sent_B):
            return self.plain
        scores, answers = dict(self._scores), dict(self._answers)
        taken_B = self._preprocess.normalise(back_B) if is_image else back_B
        self._climb(cut, np.ascontiguousarray(taken_B, np.float32), {}, scores, answers)
        return self._outcomes(scores, answers)

    def computed(self, precision: str) -> Iterator[tuple[str, str, Outcomes]]:
        """(first, last, outcomes) for every two cuts, with the pieces between them, and the heads on these, in a
        precision and the rest in float32."""
        pieces, heads = self._engines(precision)
        for at, first in enumerate(self.cuts[:-1]):
            x_B, scores, answers = self._features[first], dict(self._scores), dict(self._answers)
            for last in self.cuts[at + 1 :]:
                x_B = _run(pieces[last], x_B)
                self._leave(last, x_B, heads, scores, answers)
                far_scores, far_answers = dict(scores), dict(answers)
                self._climb(last, x_B, {}, far_scores, far_answers)
                yield first, last, self._outcomes(far_scores, far_answers)
        for engine in (*pieces.values(), *heads.values()):
            engine.close()

    def close(self) -> None:
        for engine in (*self._pieces.values(), *self._heads.values()):
            engine.close()

    def _engines(self, precision: str) -> tuple[dict[str, Engine], dict[str, Engine]]:
        """Pieces and heads by the cut that they end at, or hang on."""
        name = "onnxruntime"
        if precision != FLOAT32:  # only where one is tried
            from tierline.models.precision.bundle import engine_for
            from tierline.models.precision.convert import convert

            name = engine_for(precision)

        def engine(section: Section, at: str) -> Engine:
            raw = self._bundle.read(section.file)
            if precision != FLOAT32:
                rows = {next(iter(section.inputs)): self._calibrated(at)}
                raw = convert(raw, [precision], rows, section.name)[precision]
            made: Engine = catalog.make("engine", name, model=raw, name=section.name, threads=1)
            return made

        pieces = {b.name: engine(b.piece, a.name) for a, b in pairwise(self._cuts) if b.piece is not None}
        heads = {cut: engine(exit_.head, cut) for cut, exit_ in self._exits.items() if exit_.head is not None}
        return pieces, heads

    def _calibrated(self, cut: str) -> Array:
        if not self._calibration:
            from tierline.models.precision.bundle import cut_rows

            self._calibration = cut_rows(self._bundle)
        return self._calibration[cut]

    def _climb(
        self,
        cut: str,
        x_B: Array,
        features: dict[str, Array],
        scores: dict[str, Array],
        answers: dict[str, list[Answer]],
    ) -> None:
        """Run all above a cut; what is found replaces what was there."""
        for end in self.cuts[self.cuts.index(cut) + 1 :]:
            features[end] = x_B = _run(self._pieces[end], x_B)
            self._leave(end, x_B, self._heads, scores, answers)

    def _leave(
        self,
        cut: str,
        x_B: Array,
        heads: Mapping[str, Engine],
        scores: dict[str, Array],
        answers: dict[str, list[Answer]],
    ) -> None:
        """Ask the exit of a cut, where it has one."""
        if cut in self._exits:
            outputs = {LOGITS: _run(heads[cut], x_B) if cut in heads else x_B}
            scores[cut], answers[cut] = self._rules[cut].score(outputs), self._task.decode(outputs)

    def _outcomes(self, scores: dict[str, Array], answers: dict[str, list[Answer]]) -> Outcomes:
        whole = self._answers[OUTPUT]  # of the network without any codec
        task, truths = self._task, self._truths
        quality = [[task.quality([a], [t]) for a, t in zip(answers[cut], truths, strict=True)] for cut in self._exits]
        agreement = [[task.agreement(a, b) for a, b in zip(answers[cut], whole, strict=True)] for cut in self._exits]
        return Outcomes(
            tuple(exit_.name for exit_ in self._exits.values()),
            np.stack([scores[cut] for cut in self._exits]).astype(np.float32),
            np.array(quality, np.float32),
            np.array(agreement, np.float32),
            np.array(truths, np.int64),
            np.zeros((0, 1, 1), np.uint8),
        )


def _run(engine: Engine, x_B: Array) -> Array:
    """Of one input and one output."""
    (y_B,) = engine.run({next(iter(engine.spec.inputs)): x_B}).values()
    return y_B


_FIELDS = ("score_ES", "quality_ES", "agreement_ES")


def write_effects(path: Path, effects: Effects) -> None:
    """Keep what was measured."""
    assert effects.plain is not None
    keys, ranges = list(effects.coded), list(effects.computed)
    of = [effects.plain, *effects.coded.values(), *effects.computed.values()]
    arrays = {name: np.stack([getattr(s.outcomes, name) for s in of]) for name in _FIELDS}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part.npz")
    np.savez_compressed(
        beside,
        allow_pickle=False,
        keys=np.array(keys, np.str_).reshape(len(keys), 2),
        ranges=np.array(ranges, np.str_).reshape(len(ranges), 3),
        lossless=np.array(sorted(effects.lossless), np.str_).reshape(len(effects.lossless), 2),
        truth_S=effects.plain.outcomes.truth_S,
        **arrays,
    )
    beside.replace(path)


UNREADABLE = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile)
"""What NumPy raises for a file that is damaged or something else."""


def read_effects(path: Path | BinaryIO, outcomes: Outcomes) -> Effects:
    """What `write_effects` wrote; `outcomes` are of the same Bundle's exits. Raises one of UNREADABLE."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    base = replace(outcomes, truth_S=arrays["truth_S"], images=np.zeros((0, 1, 1), np.uint8))
    found: Sequence[Statistics] = [
        Statistics(replace(base, **{name: arrays[name][index] for name in _FIELDS}))
        for index in range(len(arrays["score_ES"]))
    ]
    keys = [(str(cut), str(token)) for cut, token in arrays["keys"]]
    lossless = frozenset((str(cut), str(token)) for cut, token in arrays["lossless"])
    ranges = [(str(first), str(last), str(precision)) for first, last, precision in arrays["ranges"]]
    coded, computed = found[1 : 1 + len(keys)], found[1 + len(keys) :]
    return Effects(found[0], dict(zip(keys, coded, strict=True)), lossless, dict(zip(ranges, computed, strict=True)))


def scores_of(bundle: Bundle, image: Array, truth: int) -> dict[str, float]:
    """The score of every candidate exit for one image, without any codec."""
    tryout = Tryout(bundle, image[np.newaxis], np.array([truth]))
    tryout.close()
    return {name: float(score) for name, (score,) in zip(tryout.plain.exits, tryout.plain.score_ES, strict=True)}
