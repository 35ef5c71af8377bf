"""A network camera: `rtsp://host/path`, received by ffmpeg over TCP; it is dialled again whenever it goes away."""

from __future__ import annotations

from urllib.parse import urlsplit

from tierline.core.errors import ConfigError
from tierline.core.source._frames import FramePlan, FrameReader, ffmpeg_output


class Rtsp(FrameReader):
    """The latest frame, (height, width, 3) uint8 RGB; frames nobody took in time count as dropped.

    A stream that gives no whole frame for `stall_s` seconds is dialled again; the camera may come later.
    Live frames have no `seq`.
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
    ) -> None:
        url = urlsplit(location)
        if not url.hostname:
            raise ConfigError("no host; write rtsp://HOST/PATH")
        command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-rtsp_transport", "tcp", "-fflags", "nobuffer"]
        command += ["-flags", "low_delay", "-i", location, *ffmpeg_output(width, height)]
        # The address may carry a password, so messages show the host and path only.
        super().__init__(
            FramePlan(
                command,
                "install it, e.g. `apt install ffmpeg`, or use a gst: pipeline",
                f"view {view!r} (rtsp://{url.hostname}{url.path})",
                width,
                height,
                queue=queue,
                stall_s=stall_s,
                reconnect=True,
            )
        )
