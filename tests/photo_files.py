"""Files of cameras, made by hand for tests."""

import io
import struct

from PIL import Image


def small_dng(preview: Image.Image, orientation: int) -> bytes:
    """A DNG of 64 x 48 pixels of a sensor, with a tiny thumbnail first and a JPEG preview."""
    out = bytearray(b"II*\x00\x00\x00\x00\x00")

    def put(data: bytes) -> int:
        out.extend(bytes(len(out) % 2))
        out.extend(data)
        return len(out) - len(data)

    def ifd(*entries: tuple) -> int:
        body = b""
        for tag, kind, *values in sorted(entries):
            data = values[0] if kind == 2 else struct.pack(f"<{len(values)}{'.B.HI.....i'[kind]}", *values)
            count = len(data) if kind == 2 else len(values) // (2 if kind == 10 else 1)
            field = data.ljust(4, b"\x00") if len(data) <= 4 else struct.pack("<I", put(data))
            body += struct.pack("<HHI", tag, kind, count) + field
        return put(struct.pack("<H", len(entries)) + body + bytes(4))

    file = io.BytesIO()
    preview.save(file, "JPEG", quality=95)
    sensor, jpeg, tiny = bytes(64 * 48 * 2), file.getvalue(), preview.resize((8, 8)).tobytes()
    size = ((256, 4, 64), (257, 4, 48), (278, 4, 48))
    one = ((258, 3, 16), (259, 3, 1), (262, 3, 32803), (277, 3, 1), (33421, 3, 2, 2), (33422, 1, 0, 1, 1, 2))
    raw = ifd((254, 4, 0), *size, *one, (273, 4, put(sensor)), (279, 4, len(sensor)), (50717, 4, 4095))
    three = ((258, 3, 8, 8, 8), (277, 3, 3), (254, 4, 1))
    shown = ifd(*three, *size, (259, 3, 7), (262, 3, 6), (273, 4, put(jpeg)), (279, 4, len(jpeg)))
    first = ((256, 4, 8), (257, 4, 8), (259, 3, 1), (262, 3, 2), (278, 4, 8), (273, 4, put(tiny)), (279, 4, len(tiny)))
    camera = ((271, 2, b"Test\x00"), (272, 2, b"Cam\x00"), (50708, 2, b"Test Cam\x00"), (50778, 3, 21))
    matrix = (50721, 10, *(1, 1, 0, 1, 0, 1), *(0, 1, 1, 1, 0, 1), *(0, 1, 0, 1, 1, 1))
    versions = ((50706, 1, 1, 4, 0, 0), (50707, 1, 1, 1, 0, 0), (274, 3, orientation), (330, 4, raw, shown))
    out[4:8] = struct.pack("<I", ifd(*three, *first, *camera, *versions, matrix))
    return bytes(out)
