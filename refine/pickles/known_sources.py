"""Embedded sources that are known to be what they claim: SHA-256 of `module_src` -> what it is.

No publisher lists the hashes of the sources inside its pickles, and a hash taken from a file of unknown
history vouches for nothing: an entry goes in only when its text has been compared with the publisher's own
repository. `python -m refine inspect FILE` prints the hashes of a file.
"""

from __future__ import annotations

KNOWN_SOURCES: dict[str, str] = {
    "4dd65114d4c8a86d067f97135c28817f7894730e96c5517134cefaf4356b81ee": "one comment (golden test files)",
    "f9bb41b974aa231ebc31bf30d116e11f947da8516ab51c12e894df5c0bcb9285": "Refine's refine/digits/sources/stylegan2.py",
    "2adb70e2865b34537835f6da5456c745e1e2e3c10226c252278f0da289947b43": "Refine's refine/digits/sources/edm.py",
}
