"""Opens tar files of strangers: what damaged ones raise, and limits on what a few bytes in them can unpack to."""

import gzip
import lzma
import tarfile
import zlib
from typing import Any

DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)  # what damaged content raises
LONGEST_HEADER = 1024**2  # bytes of a long name or of the attributes of a member
READ_AS_HEADERS = (  # a link or a folder may state any size: nothing of it is read
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
LARGEST_SAMPLE = 1024**3  # bytes of the files of one sample; sparse and compressed ones may claim any size


class Header(tarfile.TarInfo):
    """A header whose attributes are not read if they would fill the memory."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in READ_AS_HEADERS and header.size > LONGEST_HEADER):
            raise tarfile.HeaderError(f"a header of {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "Header":
        try:
            return super().fromtarfile(tar)
        except (ArithmeticError, LookupError, ValueError) as error:  # of maps of sparse files that are cut off
            raise tarfile.ReadError("a damaged header") from error


def open_tar(path: str | None = None, **how: Any) -> tarfile.TarFile:
    """A tar file, compressed or not. Raises OSError if it cannot be read, one of `DAMAGED` if it is damaged."""
    try:
        return tarfile.open(path, tarinfo=Header, **how)
    except MemoryError as error:  # an xz file states how much memory it takes
        raise tarfile.ReadError("it asks for more memory than there is") from error


def is_damage(error: Exception) -> bool:
    """Whether the content of a tar is the reason for an error, and not the machine."""
    return isinstance(error, DAMAGED) or (isinstance(error, OSError) and error.errno is None)  # of bz2
