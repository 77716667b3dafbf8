"""Numbers as text: times, sizes and counts."""

from __future__ import annotations


def format_time(seconds: float) -> str:
    """Time in the StyleGAN suite's form, such as `1h 38m 21s`."""
    total = round(seconds)
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (total % 60, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{n}{unit}" if i == 0 else f"{n:02d}{unit}" for i, (n, unit) in enumerate(parts[:3]))


def format_bytes(size: float) -> str:
    """Size in powers of 1000, such as `3.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Number with its noun, such as `1 channel` or `2,000 images`.

    Args:
        count: Number, >= 0.
        noun: Noun in the singular.
        plural: Plural of the noun; None for the noun with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
