"""What lies under the name of a data file without being one: nothing, the page of a failed download, a Git LFS pointer.

if seen := stray(start):    # "is a Git LFS pointer, not the file itself; git lfs pull fetches it."
    raise ValueError(f"{path} {seen}")
"""


def stray(start: bytes) -> str | None:
    """What a file is by its first bytes, some hundreds of them or all, and what to do; None where it may hold data."""
    if not start:
        return "is empty; copy or download it again."
    text = start[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    # Numbers may begin like a page, but not without a zero: safetensors with a header of 15,392 bytes do.
    if text.startswith(b"<") and b"\0" not in text and b"<svg" not in text:
        return "is a web page, perhaps of a download that failed; download the file itself."
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; git lfs pull fetches it."
    return None
