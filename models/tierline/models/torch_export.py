"""From a torch module to ONNX bytes with a free batch axis, weights inside."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tierline.core.errors import BundleError, ConfigError

LOGITS = "logits"


class LogitsOnly(nn.Module):
    """The one output that a plain network has: `logits` where it returns several by name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        found: Any = self.net(image)
        result: Tensor = found[LOGITS] if isinstance(found, Mapping) else found
        return result


def export(net: nn.Module, input_shape: tuple[int, ...], *, opset: int = 18) -> bytes:
    """ONNX of a network as it evaluates; `input_shape` without the batch axis. Raises BundleError."""
    was_training = net.training
    net.eval()
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")  # of torch about itself
            program = torch.onnx.export(
                LogitsOnly(net).eval(),
                (torch.zeros(2, *input_shape),),  # not 1, which the exporter would take for a constant
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["image"],
                output_names=[LOGITS],
                external_data=False,
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # many classes, most of them private
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{type(net).__name__}: torch cannot export it to ONNX ({reason[:160]})") from error
    finally:
        net.train(was_training)
    assert program is not None
    raw: bytes = program.model_proto.SerializeToString(deterministic=True)
    return raw


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs a line for every operator of torchvision, where that is not installed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def load_module(spec: str) -> nn.Module:
    """`package.module:name`, from here or from the installed packages: a Module, or what makes one when it is called.

    Raises ConfigError.
    """
    module_name, _, name = spec.partition(":")
    here = os.getcwd()  # noqa: PTH109
    sys.path.insert(0, here)
    try:
        found: Any = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise ConfigError(f"{spec}: cannot be imported ({error}); write module:Net, seen from {here}") from error
    finally:
        sys.path.remove(here)
    if found is None:
        raise ConfigError(f"{spec}: module {module_name!r} has no {name!r}")
    if not isinstance(found, nn.Module) and callable(found):
        try:
            inspect.signature(found).bind()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{spec}: cannot be called without arguments ({error}); name one that can") from error
        found = found()
    if not isinstance(found, nn.Module):
        raise ConfigError(f"{spec}: is a {type(found).__name__}, not a torch module or what makes one")
    return found
