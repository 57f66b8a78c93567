"""Which files are images: all that Pillow and its plug-ins read, but for what no camera and no drawing program writes.

    is_image("IMG_1.JFIF")                          # True: by the suffix, in any case
    image = by_pillow(content, "IMG_1.JFIF")        # by the content; the suffix counts where a format has no signature

A format that a later Pillow reads is read, too. HEIC and HEIF need the package pillow-heif (the extra `heif`); without
it they are images that cannot be read, which are named like damaged ones.
"""

import logging
from contextlib import suppress
from importlib import import_module
from io import BytesIO
from pathlib import PurePath

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

Image.init()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or what is refused here would be printed, too
with suppress(ImportError):  # where the extra is not installed
    import_module("pillow_heif").register_heif_opener()

# Grids of measurements; pages and vectors, which other programs would draw; videos; what has no signature.
NOT_READ = {
    "BUFR", "FITS", "GRIB", "HDF5", "MCIDAS", "EPS", "PDF", "WMF", "MPEG", "IM", "IMT", "IPTC", "SPIDER", "XVTHUMB",
}  # fmt: skip
FORMATS = tuple(kind for kind in Image.ID if kind not in NOT_READ)
# suffix -> format
KINDS = {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
KINDS |= dict.fromkeys((".jif", ".pjpeg", ".pjp", ".mpo"), "JPEG")
KINDS |= dict.fromkeys((".heic", ".heif", ".heics", ".heifs", ".hif"), "HEIF")
SUFFIXES = tuple(KINDS)
# A TGA may begin like a cursor. These are tried only where the suffix says so.
UNSIGNED = {"TGA", "DIB", "CUR"}
KNOWN = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, HEIC and others that Pillow reads"

HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
OTHERS = {
    b"%PDF": "a PDF", b"%!PS": "PostScript", b"\xc5\xd0\xd3\xc6": "PostScript", b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "a gzip file", b"\x89HDF": "an HDF5 file", b"SIMPLE  =": "a FITS file", b"v/1\1": "OpenEXR",
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"#?RADIANCE": "Radiance HDR", b"FUJIFILMCCD": "a raw file",
    b"\x1aE\xdf\xa3": "a video", b"Rar!": "an archive", b"7z\xbc\xaf": "an archive", b"\x93NUMPY": "an array",
}  # fmt: skip


def is_image(name: str) -> bool:
    """Whether a file is an image by its name: the one rule for folders, tars and the command line."""
    return PurePath(name).suffix.lower() in KINDS


def by_pillow(content: bytes, name: str) -> Image.Image:
    """The image as Pillow opens it. UnidentifiedImageError, or anything that a damaged header makes Pillow raise."""
    kind = KINDS.get(PurePath(name).suffix.lower())
    return Image.open(BytesIO(content), formats=[form for form in FORMATS if form not in UNSIGNED or form == kind])


def unidentified(content: bytes) -> str:
    """Why Pillow does not open an image, and what to do: the end of a sentence that begins with its name."""
    if content[4:8] == b"ftyp" and content[8:12] in HEIF and "HEIF" not in FORMATS:
        return "is HEIC or HEIF, which the package pillow-heif reads; pip install 'vitrail[heif]'."
    for kind in FORMATS:
        factory, accepts = Image.OPEN[kind]
        # A string says what this Pillow was built without.
        if kind in UNSIGNED or accepts is None or not (why := accepts(content[:16])):
            continue
        try:
            factory(BytesIO(content), "")
        except Exception as error:  # Pillow keeps the reason for itself
            why = why if isinstance(why, str) else " ".join(str(error).split()) or type(error).__name__
        why = str(why)[:80]
        if "pixel" in why and (bands := tiff_bands(content)):
            return f"{bands}, which is no kind of image that can be shown; {ARRAY}."
        reason = f"or of a rare kind of {kind} ({why})"
        return f"is cut short or damaged, {reason}; copy or download it again, or convert it to PNG."
    found = next((what for start, what in OTHERS.items() if content.startswith(start)), None)
    if found is None and content[4:8] == b"ftyp":
        found = "a video"
    return f"is {found or 'not an image of a format that is read here'}; convert it to JPEG, PNG, WebP or TIFF."


ARRAY = "numpy.save it as uint8 (height, width, bands), scaled as in training, and name the .npy file"


def tiff_bands(content: bytes) -> str | None:
    """What a whole TIFF holds: "has 13 bands of 16 bits"; None for anything else."""
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        stream = BytesIO(content)
        tags = ImageFileDirectory_v2(stream.read(16 if 43 in content[2:4] else 8))
        stream.seek(tags.next)
        tags.load(stream)
        bits, sort = max(tags[258]), {2: " signed", 3: " floating-point"}.get(max(tags.get(339, (1,))), "")
        return f"has {tags.get(277, 1)} bands of {bits}{sort} bits"
    except Exception:  # a damaged header makes Pillow raise anything
        return None
