"""Published sources by the SHA-256 of their text, which is the `module_src` of a pickle.

A hash taken from a file of unknown history vouches for nothing: an entry goes in only when its text has been compared
with the publisher's own repository. A file pickled by an unchanged checkout has one of these; official checkpoints may
carry an earlier version that was never published. `python -m refine inspect FILE` prints the hashes of a file.
"""

from __future__ import annotations

# Repository and commit: hash of the whole text -> source file, for each version in the repository's main history.
_PUBLISHED = {
    "NVlabs/stylegan2-ada-pytorch at 375a436": {
        "df49fc78a0364015a09b592bb43546af83a6cdaad753d89a2a1a69bd6e171c24": "training/networks.py",
        "fd81c871a9bfbb7feaad138b1e875db05c640060bdbf0342247d209eb48ba8f9": "training/augment.py",
    },
    "NVlabs/stylegan3 at 583f2bd": {
        "b6f14e8fa2a95de4d38218fef31380c6a70de770f585107e209ff83075c307ef": "training/networks_stylegan2.py",
        "06082fb3e8929e477f58fb8bc78e7ecb9a9209eb01444272d1d153c85a6a89f7": "training/networks_stylegan3.py",
        "43c6b98bc68d5d214dd2e2775a10eb007dee034c005766fbc310005147bfb788": "training/augment.py",
    },
    "NVlabs/stylegan3 at 8fb5177": {
        "137a76d163766bad469acb7a0835a6598419fb17585e5e0a72e3f0008668811c": "training/networks_stylegan2.py",
        "739c91ff0995b5901ecaa5d1ccc89e1f0ec0d6999e2204828ce10410051a838c": "training/networks_stylegan3.py",
        "5039458f00942b6b07667ca8412ce0a0b96113858982d16729273a524c31b714": "training/augment.py",
    },
    "NVlabs/edm at b2a26c9": {
        "5db27dcd96674b95c72d5e6491b879cdc35e24039ada3411b4b46a28ed1fe284": "training/networks.py",
    },
    "NVlabs/edm at 0a2ff34": {
        "2294828d5f59f5fd008f7141e6b8af2095918f2ce019f280a933e4779b5c3cef": "training/networks.py",
        "b26f0937bc72b18cc5f9869c86035ca9b872138cdfae7994237e9733951e4415": "training/loss.py",
        "fd411af7c2d74489ce11a245293047369fc044d00a9aeed1c0bd46b322c8a8b5": "training/augment.py",
    },
    "NVlabs/edm2 at d8299d3": {
        "7298880db4bf955d2941496cce3a554a970867b3eae4d22276cb1c293c131fa2": "training/networks_edm2.py",
    },
}

KNOWN_SOURCES: dict[str, str] = {
    **{sha256: f"{where}: {file}" for where, files in _PUBLISHED.items() for sha256, file in files.items()},
    "4dd65114d4c8a86d067f97135c28817f7894730e96c5517134cefaf4356b81ee": "one comment (golden test files)",
    "f9bb41b974aa231ebc31bf30d116e11f947da8516ab51c12e894df5c0bcb9285": "Refine's refine/digits/sources/stylegan2.py",
    "2adb70e2865b34537835f6da5456c745e1e2e3c10226c252278f0da289947b43": "Refine's refine/digits/sources/edm.py",
}
