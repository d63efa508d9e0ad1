"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import platformdirs
from click.core import ParameterSource

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_MODEL = "gennode-large"
CODECS = (  # those of `gennode.wire.fields`, which takes longer to import than --help may
    "int8-outlier", "raw", "lossless", "bf16", "bf16-planes", "int8", "int6-outlier", "fp8",
    "mxfp8", "mxfp6", "mxfp4",
)  # fmt: skip
CODEC_HELP = (
    "How states travel. Bytes per number: raw 4, lossless 3.3, bf16 2, bf16-planes 1.3, "
    "int8-outlier 1.05, int8 1.03, mxfp8 1.03, fp8 1.02, int6-outlier 0.80, mxfp6 0.78, "
    "mxfp4 0.53. raw and lossless change nothing; int6-outlier is for slow lines; mxfp4 loses "
    "most."
)
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


class Size(click.ParamType[int]):
    """Bytes, such as 512M or 8G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Text to bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT]?)(?:I?B)?", str(value).upper())
        if match is None:
            self.fail(f"{value!r} is no size; write 512M or 8G", param, ctx)
        size = int(float(match[1]) * _UNITS[match[2]])
        if size < 1:
            self.fail("nothing is too little; write 512M or 8G", param, ctx)
        return size


class Finite(click.FloatRange):
    """A number in a range; `nan` is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text to a number."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


class Layers(click.ParamType[tuple[int, int] | None]):
    """`auto`, or a half-open range of layers such as 0:8."""

    name = "auto|I:J"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int] | None:
        """Text to (start, end); `auto` to None."""
        if value == "auto":
            return None
        match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", str(value))
        if match is None or int(match[1]) >= int(match[2]):
            self.fail(
                f"{value!r} is no range of layers; write auto, or 0:8 for the first eight",
                param,
                ctx,
            )
        return int(match[1]), int(match[2])


def is_given(option: str) -> bool:
    """Whether an option stands on the command line."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def state_option(command: F) -> F:
    """`--state`: the folder with the node's key."""
    return click.option(
        "--state",
        type=click.Path(path_type=Path, file_okay=False),
        default=lambda: platformdirs.user_state_path("gennode"),
        show_default="the user's state folder",
        help="Folder with the node's key and its lock.",
    )(command)


def model_option(command: F) -> F:
    """`--model`: which weights."""
    return click.option(
        "--model",
        default=DEFAULT_MODEL,
        show_default=True,
        help="A bundled model (gennode-small, -medium, -large), a folder with safetensors or "
        "a GGUF file, hub:ORGANISATION/NAME, or a model's id of 64 hex digits, to fetch it from "
        "peers.",
    )(command)


def bootstrap_option(command: F) -> F:
    """`--bootstrap`: whom to meet first."""
    return click.option(
        "--bootstrap",
        multiple=True,
        metavar="ADDR",
        help="Address of a peer to meet first, as `gennode join` prints it. May be repeated.",
    )(command)


def memory_option(command: F) -> F:
    """`--memory`: how much layers and caches may take."""
    return click.option(
        "--memory",
        type=Size(),
        show_default="half of what is free",
        help="How much memory layers and their caches may take, such as 8G.",
    )(command)


def device_options(command: F) -> F:
    """`--device`, and `--gpu` and `--cpu`, its short forms: what computes."""
    for option in (
        click.option("--cpu", "device", flag_value="cpu", help="The same as --device cpu."),
        click.option("--gpu", "device", flag_value="gpu", help="The same as --device gpu."),
        click.option(
            "--device",
            "device",
            default="cpu",
            show_default=True,
            metavar="NAME",
            help="What computes: cpu, gpu (whichever there is), or one by name: cuda, cuda:1 for "
            "the second of several (AMD's as well), mps (Apple's). Exit 7 if it is not there.",
        ),
    ):
        command = option(command)
    return command


def precision_option(command: F) -> F:
    """`--precision`: of weights and products."""
    return click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
        default="auto",
        show_default=True,
        help="In what weights are held and multiplied; auto takes what is quickest here, by what "
        "was measured on this machine before. int8 takes a quarter of the memory (Llama family).",
    )(command)


def listen_options(command: F) -> F:
    """`--host` and `--port`: where to listen."""
    for option in (
        click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="any free"),
        click.option(
            "--host",
            show_default="the one that leads to --bootstrap, or loopback",
            help="IP address of this machine to listen on; 0.0.0.0 for all.",
        ),
    ):
        command = option(command)
    return command


def transport_option(command: F) -> F:
    """`--transport`: what carries the streams."""
    return click.option(
        "--transport",
        type=click.Choice(["p2pd", "pylibp2p"]),
        default="p2pd",
        show_default=True,
        help="p2pd is the libp2p daemon; pylibp2p needs none, and is slower.",
    )(command)


def sampling_options(command: F) -> F:
    """How a prompt is told, its tokens chosen and sent, and what an answer may cost."""
    for option in (
        click.option(
            "--max-tokens",
            type=click.IntRange(1, 1 << 20),
            default=128,
            show_default=True,
            help="End the answer after so many tokens.",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(0.0, 2.0),
            default=0.0,
            show_default=True,
            help="0 takes the likeliest token.",
        ),
        click.option(
            "--top-p",
            type=click.FloatRange(0.0, 1.0, min_open=True),
            default=1.0,
            show_default=True,
            help="Choose among the likeliest tokens of this mass.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, (1 << 63) - 1),
            default=0,
            show_default=True,
            help="The same seed gives the same answer over the same cut of layers.",
        ),
        click.option(
            "--codec",
            type=click.Choice(CODECS),
            default="int8-outlier",
            show_default=True,
            help=CODEC_HELP,
        ),
        click.option(
            "--cheapest",
            is_flag=True,
            help="Prefer a low price to a quick answer, while workers have room.",
        ),
        click.option(
            "--replicate",
            is_flag=True,
            help="Have other workers keep copies of what this answer's workers hold: after a "
            "failure a long answer goes on sooner. It costs them upload.",
        ),
        click.option(
            "--chat",
            is_flag=True,
            help="Tell the prompt as a user's message, by the model's chat template: for models "
            "that were trained to converse.",
        ),
    ):
        command = option(command)
    return command


def tame_threads(threads: int | None = None) -> None:
    """Set up the engine's threads; must run before torch is imported.

    An idle worker's OpenMP threads would spin on the cores that its neighbour computes on.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
