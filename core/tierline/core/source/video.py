"""Frames of a video file, decoded and scaled by ffmpeg."""

from __future__ import annotations

from pathlib import Path

from tierline.core.errors import ConfigError, DataError
from tierline.core.source._frames import FramePlan, FrameReader, ffmpeg_output


class Video(FrameReader):
    """Every frame in order (`queue=all`), `seq` its index; `realtime` plays at the file's own speed like a camera.

    Images are (height, width, 3) uint8 RGB. The file's end is the source's end, unless `loop`.
    """

    def __init__(
        self,
        *,
        location: str,
        view: str,
        view_index: int,
        width: int = 640,
        height: int = 480,
        queue: str = "all",
        loop: bool = False,
        realtime: bool = False,
        stall_s: float = 0.0,
    ) -> None:
        if not location:
            raise ConfigError("no file; write video:PATH")
        self._path = Path(location)
        command = ["ffmpeg", "-nostdin", "-loglevel", "error"]
        command += ["-re"] if realtime else []
        command += ["-stream_loop", "-1"] if loop else []
        command += ["-i", f"file:{location}", *ffmpeg_output(width, height)]
        super().__init__(
            FramePlan(
                command,
                "install it, e.g. `apt install ffmpeg`",
                f"view {view!r} ({location})",
                width,
                height,
                queue=queue,
                numbered=True,
                stall_s=stall_s,
            )
        )

    async def check(self) -> None:
        """Raises DataError for a missing file, MissingDependency without ffmpeg."""
        if not self._path.is_file():
            raise DataError(f"{self._path}: no such file")
        await super().check()
