"""A GStreamer pipeline as text: `gst:v4l2src device=/dev/video0`, `gst:nvarguscamerasrc ! nvvidconv`.

It ends in raw video of any format; conversion, scaling and the pipe to us are appended.
"""

from __future__ import annotations

import shlex

from tierline.core.errors import ConfigError
from tierline.core.source._frames import FramePlan, FrameReader


class Gst(FrameReader):
    """The latest frame, (height, width, 3) uint8 RGB; frames nobody took in time count as dropped.

    The pipeline is started again when it ends or gives no whole frame for `stall_s` seconds; with `reconnect=false`
    its end is the source's end. Live frames have no `seq`.
    """

    def __init__(
        self,
        *,
        location: str,
        view: str,
        view_index: int,
        width: int = 640,
        height: int = 480,
        queue: str = "latest",
        stall_s: float = 10.0,
        reconnect: bool = True,
    ) -> None:
        try:
            pipeline = shlex.split(location)
        except ValueError as error:
            raise ConfigError(f"the pipeline's quotes do not match: {error}") from error
        if not pipeline:
            raise ConfigError("no pipeline; write e.g. gst:v4l2src device=/dev/video0")
        command = ["gst-launch-1.0", "-q", *pipeline, "!", "videoconvert", "!", "videoscale", "!"]
        command += [f"video/x-raw,format=RGB,width={width},height={height}", "!", "fdsink", "fd=1"]
        super().__init__(
            FramePlan(
                command,
                "install it, e.g. `apt install gstreamer1.0-tools gstreamer1.0-plugins-good`",
                f"view {view!r} (gst:{pipeline[0]})",
                width,
                height,
                row_multiple=4,
                queue=queue,
                stall_s=stall_s,
                reconnect=reconnect,
            )
        )
