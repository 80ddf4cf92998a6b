"""Pictures in a terminal, two pixels in a character: a half block in the upper one's colour on the lower one's."""

import shutil
from typing import IO

import numpy as np

MOST = 8  # pictures side by side


class Preview:
    """Redraws a row of pictures in place, as they come out of the noise."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lines = stream, 0

    def show(self, pictures: np.ndarray, caption: str) -> None:
        """The first of (B, H, W, C) uint8, as many as there is room for."""
        room = max(1, min(MOST, (shutil.get_terminal_size().columns - 1) // (pictures.shape[2] + 1)))
        lines = [*half_blocks(pictures[:room]), caption]
        back = f"\x1b[{self._lines}A" if self._lines else ""
        self._stream.write(back + "".join(f"{line}\x1b[K\n" for line in lines))
        self._stream.flush()
        self._lines = len(lines)

    def forget(self) -> None:
        """The next pictures come below these."""
        self._lines = 0


def half_blocks(pictures: np.ndarray) -> list[str]:
    """(B, H, W, C) uint8 side by side: lines in ANSI true colour, of two rows each; an odd last row is doubled."""
    b, h, w, c = pictures.shape
    colours = np.broadcast_to(pictures, (b, h, w, 3)) if c == 1 else pictures
    lines = []
    for y in range(0, h, 2):
        upper, lower = colours[:, y], colours[:, min(y + 1, h - 1)]  # (B, W, 3)
        parts = []
        for row in range(b):
            pairs = zip(upper[row].tolist(), lower[row].tolist(), strict=True)
            parts.append(
                "".join(f"\x1b[38;2;{r};{g};{bl}m\x1b[48;2;{r2};{g2};{b2}m▀" for (r, g, bl), (r2, g2, b2) in pairs)
                + "\x1b[0m"
            )
        lines.append(" ".join(parts))
    return lines
