"""What the page on Python shows runs as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.runtime.toy import make_toy, write_toy_bundle
from vtc.runtime.vlm import VLM

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
FRAMES = [np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8) for seed in range(3)]


class Camera:
    """A camera of OpenCV's that shows three frames, blue first, as rows of a wider buffer."""

    def __init__(self, _number: int) -> None:
        self.frames = [np.ascontiguousarray(frame[..., ::-1]) for frame in FRAMES]
        self.released = False
        CAMERAS.append(self)

    def set(self, _property: int, _value: int) -> bool:
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        return (True, self.frames.pop(0)) if self.frames else (False, None)

    def release(self) -> None:
        self.released = True


CAMERAS: list[Camera] = []


def test_the_camera_loop_answers_every_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (loop,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in loop.splitlines() if line.strip()]) <= 15
    bundle = write_toy_bundle(make_toy(), tmp_path / "out" / "bundle")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=Camera, CAP_PROP_BUFFERSIZE=38))
    exec(compile(loop, str(PAGE), "exec"), {})
    model = VLM.load(bundle)
    wanted = [model.ask(frame, "what digit is shown?", max_new_tokens=8) for frame in FRAMES]
    assert capsys.readouterr().out.splitlines() == wanted
    assert len(set(wanted)) > 1
    assert CAMERAS[-1].released
