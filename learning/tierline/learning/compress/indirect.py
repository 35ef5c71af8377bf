"""A dense layer's gradient by its two quantised factors, which the receiver multiplies (ISGQ).

    G = X' D,   C(X, D) = Xq' Dq,   X float32[B, I] what the layer was given, D float32[B, O] the error at its outputs

- `form = "naive"`: each factor by the Lloyd-Max quantiser of its model, scaled by the root mean square of its values.
- "mv", minimum variance: the same cells, but centres c of D by least squares, min |Xq' sum_i c_i [D in i] - G|^2, then
  those of X with D fixed, `num_passes` times.
- "mvu": as "mv", with the sums over all entries of C and of G made equal.
- "dithered": each factor on a scale of s = max / M with its own dither, subtracted; E C = G.

Models, of X and of D: "sn" sparse normal, "sfn" sparse folded normal (after a ReLU), "su" sparse uniform: exact zeros
are a symbol; "u" uniform. Sends B (b_x I + b_d O) bits instead of 32 I O, and the centres.
Abdi, Fekri, "Indirect Stochastic Gradient Quantization and its Application in Distributed Deep Learning", AAAI 2020.
Deviations: "mvu" solves its one linear constraint in closed form for any number of centres, where the authors keep two
centres in closed form and give more to a quadratic program. Where B I, or convolutions, make the factors larger than
G, use another compressor on G.
What it needs leaves the worker: activations are not private. Remembers nothing.
Status: reconstructed (from a summary and the authors' code; the paper's text and tables were not at hand. Checked:
gains in bits, the mean over keys of "dithered", the descent of error from "naive" to "mv").
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from tierline.core.errors import CodecError, ConfigError, CorruptPayload, ShapeMismatch
from tierline.core.rng import Key
from tierline.core.types import Array
from tierline.learning.compress import _lloyd
from tierline.learning.compress._message import (
    Stateless,
    checked,
    coded,
    coded_bytes,
    decoded,
    message_bytes,
    opened,
    restored,
    scalar,
    seal,
    squares,
)
from tierline.learning.compressor import Compressed, Factors, Floats, Promise

FORMS = ("naive", "mv", "mvu", "dithered")


class ISGQ(Stateless):
    """Compressor `indirect`, of Factors only. `levels` is the number of centres of either factor; with "dithered" it is
    odd, 2 M + 1, and a model that is sparse spends one more symbol on zeros."""

    def __init__(
        self,
        *,
        form: Literal["naive", "mv", "mvu", "dithered"] = "mv",
        levels: int = 2,
        model_x: str = "sfn",
        model_d: str = "sn",
        num_passes: int = 1,
    ) -> None:
        if form not in FORMS:
            raise ConfigError(f"indirect: form = {form!r}; valid: {', '.join(FORMS)}")
        for name, model in (("model_x", model_x), ("model_d", model_d)):
            if model not in _lloyd.MODELS:
                raise ConfigError(f"indirect: {name} = {model!r}; valid: {', '.join(_lloyd.MODELS)}")
        if not 2 <= levels <= 16 or (form == "dithered" and levels % 2 == 0) or num_passes < 1:
            raise ConfigError(
                f"indirect: levels = {levels}, from 2 to 16 and odd for dithered; num_passes = {num_passes}, at least 1"
            )
        self._form, self._levels, self._models, self._num_passes = form, levels, (model_x, model_d), num_passes
        self._tokens = tuple(f"radix:{levels + _lloyd.is_sparse(model)}" for model in self._models)
        self.promise = Promise(unbiased=form == "dithered", contracts=form == "mv", takes_factors_only=True)

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        if not isinstance(update, Factors):
            raise ShapeMismatch(f"indirect: {key.tensor!r} is an array; it takes Factors, others take arrays")
        checked(key, update.x_BI)
        checked(key, update.d_BO)
        x, d = (
            self._quantised(key.child(name), factor, model)
            for name, factor, model in zip("xd", (update.x_BI, update.d_BO), self._models, strict=True)
        )
        if self._form in ("mv", "mvu"):
            for _ in range(self._num_passes):
                d = d[0], self._fitted(update.x_BI, update.d_BO, *x, *d, self._models[1])
                x = x[0], self._fitted(update.d_BO, update.x_BI, *d, *x, self._models[0])
        payloads = {
            name: coded(symbols.astype(np.uint8).reshape(1, -1), token)
            for name, (symbols, _), token in zip("xd", (x, d), self._tokens, strict=True)
        }
        if self._form == "dithered":
            scales = {"x_step": float(x[1][0]), "d_step": float(d[1][0])}
        else:
            scales = {}
            payloads["centres"] = coded(self._centres(key, x[1], d[1]), "raw")
        return seal(key, update.shape, payloads, num_samples=len(update.x_BI), **scales)

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        names = ("x", "d") if self._form == "dithered" else ("x", "d", "centres")
        payloads = opened(key, message, *names)
        num_samples = scalar(message, "num_samples")
        if not 0 <= num_samples < 2**31 or num_samples != int(num_samples):
            raise CorruptPayload(f"indirect: num_samples is {num_samples}")
        centres_2L = None
        if self._form != "dithered":
            centres_2L = decoded(payloads[2], "raw", (2, self._levels))
        factors = []
        for i, name in enumerate("xd"):
            num_values = int(num_samples) * message.shape[i]
            symbols_1V = decoded(payloads[i], self._tokens[i], (1, num_values), "uint8")
            symbols = symbols_1V.astype(np.int32).reshape(int(num_samples), message.shape[i])
            if centres_2L is None:
                factors.append(self._undithered(key.child(name), symbols, scalar(message, f"{name}_step")))
            else:
                factors.append(np.append(centres_2L[i], np.float32(0))[symbols])
        with np.errstate(over="ignore", invalid="ignore"):
            return restored(key, message, factors[0].T @ factors[1])

    def expected_error(self, update: Array | Factors) -> float:
        if not isinstance(update, Factors) or self._form in ("naive", "mvu"):
            return math.inf
        if self._form == "mv":  # centres of zero were a choice
            return squares(update.product())
        x, d = update.x_BI.astype(np.float64), update.d_BO.astype(np.float64)
        var_x_B, var_d_B = (self._variances(f, m) for f, m in zip((x, d), self._models, strict=True))
        return float(((x**2).sum(1) * var_d_B + (d**2).sum(1) * var_x_B + var_x_B * var_d_B).sum())

    def max_bytes(self, update: Array | Factors) -> int:
        if not isinstance(update, Factors):
            raise ShapeMismatch("indirect: takes Factors")
        factors = zip((update.x_BI, update.d_BO), self._tokens, strict=True)
        num_bytes = sum(coded_bytes(token, (1, f.size), "uint8") for f, token in factors)
        if self._form == "dithered":
            return message_bytes(num_bytes, num_scalars=3)
        return message_bytes(num_bytes + 8 * self._levels, num_scalars=1)

    def _quantised(self, key: Key, factor: Floats, model: str) -> tuple[Array, Array]:
        """Symbols int32, and what they stand for: centres, or the step of the scale."""
        if self._form != "dithered":
            return _lloyd.symbols(factor, model, self._levels)
        most = self._levels // 2
        step = float(np.abs(factor).max(initial=0.0)) / most
        level = _dither(key, factor.shape) + (factor / step if step > 0 else 0.0)
        symbols = np.clip(np.rint(level), -most, most).astype(np.int32) + most
        if _lloyd.is_sparse(model):
            symbols[factor == 0] = self._levels
        return symbols, np.array([step])

    def _undithered(self, key: Key, symbols: Array, step: float) -> Array:
        level = symbols - self._levels // 2 - _dither(key, symbols.shape)
        return np.where(symbols == self._levels, 0.0, step * level)

    def _fitted(
        self, a: Array, b: Array, a_symbols: Array, a_centres: Array, b_symbols: Array, b_centres: Array, model: str
    ) -> Array:
        """Centres of `b` that make Aq' Bq nearest to A' B, with Aq as it is. The zero of a sparse model stays.

        With A_i = Aq' [B in i]:  <A_r, A_c> = <[B in r], Aq Aq' [B in c]>,  <A_r, G> = <[B in r], Aq A' B>, so that
        nothing of the gradient's size is made."""
        aq_BI = a_centres[a_symbols]
        cells = [(b_symbols == i).astype(np.float64) for i in range(self._levels)]
        gram_BB, target_BO = aq_BI @ aq_BI.T, aq_BI @ a.T.astype(np.float64) @ b.astype(np.float64)
        m = np.array([[(r * (gram_BB @ c)).sum() for c in cells] for r in cells])
        e = np.array([(r * target_BO).sum() for r in cells])
        found = np.linalg.lstsq(m, e, rcond=None)[0]
        if self._form == "mvu":
            sums = np.array([aq_BI.sum(axis=1) @ c.sum(axis=1) for c in cells])
            across = np.linalg.lstsq(m, sums, rcond=None)[0]
            missing = float(a.sum(axis=1, dtype=np.float64) @ b.sum(axis=1, dtype=np.float64)) - float(sums @ found)
            if sums @ across > 0:
                found = found + across * (missing / (sums @ across))
        return np.append(found, 0.0) if _lloyd.is_sparse(model) else found

    def _centres(self, key: Key, x_centres: Array, d_centres: Array) -> Floats:
        with np.errstate(over="ignore"):
            centres_2L = np.stack([x_centres[: self._levels], d_centres[: self._levels]]).astype(np.float32)
        if not np.isfinite(centres_2L).all():
            raise CodecError(f"indirect: factors of {key.tensor!r} are too far apart in size; scale them")
        return centres_2L

    def _variances(self, factor: Array, model: str) -> Array:
        """Sum of the variances of each sample's values, with the dither."""
        step = float(np.abs(factor).max(initial=0.0)) / (self._levels // 2)
        num_B = np.count_nonzero(factor, axis=1) if _lloyd.is_sparse(model) else np.full(len(factor), factor.shape[1])
        return np.asarray(num_B * step**2 / 12)


def _dither(key: Key, shape: tuple[int, ...]) -> Array:
    num_values = int(np.prod(shape))
    return np.asarray(key.child("dither").uniform(num_values).astype(np.float64) - 0.5).reshape(shape)
