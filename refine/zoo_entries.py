"""Files that have a name: official checkpoints, reference statistics of the FID, detectors, and the built-in digits.

A license, size or digest that is not known for certain is None here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refine.files import download

KINDS = ("generator", "denoiser", "fid-reference", "detector", "dataset")


@dataclass(frozen=True)
class ZooEntry:
    """A file that has a name.

    Attributes:
        name: Name that `--gan`, `--teacher` and `resolve` accept; for networks with and without `.pkl`.
        kind: One of `KINDS`; an "fid-reference" is mean and covariance of detector features.
        family: Architecture: "stylegan2", "stylegan3", "stylegan-xl", "edm", "adm", "edm2"; "inception" for files of
            the FID, "vgg" for the detector of precision, recall and path length, "dinov2" and "clip" for the detectors
            of these names, "digits" for the built-in pair's.
        resolution: Image side in pixels; None if it means nothing.
        license: None if not known: the publisher's page tells.
        url: Address that it is downloaded from; None for a file that needs no download, or has to be fetched by hand.
        path: Place of a file that needs no download; None for all others.
        page: Page of its publisher; None if not known.
        size: Bytes, None if not known.
        sha256: Hexadecimal, None if not known.
        aliases: Shorter names for it.
        settings: What a state dict does not tell of its network; see `networks.adm_settings`. Empty for other files.
        untried: Whether the entry was written after its publisher's page, and no such file was ever opened with Refine.
        fid: Data set, and the published FID on it: of a generator's images, or of a denoiser's samples at their best.
            None if not known.
    """

    name: str
    kind: str
    family: str
    resolution: int | None
    license: str | None
    url: str | None = None
    path: Path | None = None
    size: int | None = None
    sha256: str | None = None
    aliases: tuple[str, ...] = ()
    settings: str = ""
    page: str | None = None
    untried: bool = False
    fid: tuple[str, float] | None = None

    @property
    def spellings(self) -> tuple[str, ...]:
        """All names that mean this entry."""
        names = (self.name, *self.aliases)
        is_network = self.kind in ("generator", "denoiser")
        return (*names, *(f"{name}{self.suffix}" for name in names)) if is_network else names

    @property
    def suffix(self) -> str:
        """Suffix of the file of a network: `.pt` for a state dict, else `.pkl`."""
        return ".pt" if self.family == "adm" else ".pkl"

    @property
    def refines(self) -> str:
        """Use of a network in Refine: "yes", or "untried" for a form of file that was never opened; "-" for others."""
        if self.kind not in ("generator", "denoiser"):
            return "-"
        return "untried" if self.untried else "yes"

    @property
    def place_by_hand(self) -> Path | None:
        """The place where a file is looked for that has to be fetched by hand; None for all others."""
        if self.url or self.path:
            return None
        return download.cache_directory() / f"{self.name}{self.suffix}"

    def local_path(self) -> Path | None:
        """The file on this machine, None if it has yet to be downloaded."""
        if self.place_by_hand is not None:
            return self.place_by_hand if self.place_by_hand.is_file() else None
        return download.cached(self.url) if self.url else self.path


NVIDIA_SOURCE_CODE = "NVIDIA Source Code License (non-commercial)"
CC_BY_NC_SA = "CC BY-NC-SA 4.0"
MIT = "MIT (code); model card: research use"

APACHE = "Apache-2.0"
UCI_DIGITS = "CC BY 4.0 (UCI; by way of scikit-learn, BSD-3-Clause)"
_DIGITS = Path(__file__).resolve().parent / "digits"

_CLIP_SHA256 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"  # part of its address, too
_CDN = "https://nvlabs-fi-cdn.nvidia.com"
_NGC = "https://api.ngc.nvidia.com/v2/models/nvidia/research"
_OPENAI = "https://openaipublic.blob.core.windows.net"
_GUIDED, _GUIDED_PAGE = f"{_OPENAI}/diffusion/jul-2021", "https://github.com/openai/guided-diffusion"
_CONSISTENCY, _CONSISTENCY_PAGE = f"{_OPENAI}/consistency", "https://github.com/openai/consistency_models"
_P2_PAGE = "https://github.com/jychoi118/P2-weighting"
_EDM2_PAGE = "https://github.com/NVlabs/edm2"
_SID_PAGE = "https://huggingface.co/UT-Austin-PML/SiD"
_DDO_PAGE = "https://huggingface.co/nvidia/DirectDiscriminativeOptimization"
_ADA = f"{_CDN}/stylegan2-ada-pytorch/pretrained"
_XL = "https://s3.eu-central-1.amazonaws.com/avg-projects/stylegan_xl/models"

# Of the EDM checkpoints that come as `vp` and `ve`, the short name means `vp`: what published distillations start from.
_ALIASES = {
    "cifar10u-cifar-ada-best-fid": ("cifar10-uncond",),
    "edm-cifar10-32x32-cond-vp": ("edm-cifar10-cond",),
    "edm-cifar10-32x32-uncond-vp": ("edm-cifar10-uncond",),
    "edm-ffhq-64x64-uncond-vp": ("edm-ffhq",),
    "edm-afhqv2-64x64-uncond-vp": ("edm-afhqv2",),
    "edm-imagenet-64x64-cond-adm": ("edm-imagenet",),
    # The names of OpenAI's files.
    "adm-imagenet-64x64-cond": ("64x64_diffusion",),
    "adm-imagenet-128x128-cond": ("128x128_diffusion",),
    "adm-imagenet-256x256-cond": ("256x256_diffusion",),
    "adm-imagenet-256x256-uncond": ("256x256_diffusion_uncond",),
    "adm-imagenet-512x512-cond": ("512x512_diffusion",),
    "adm-lsun-bedroom-256x256": ("lsun_bedroom",),
    "adm-lsun-cat-256x256": ("lsun_cat",),
    "adm-lsun-horse-256x256": ("lsun_horse",),
    "cm-edm-imagenet-64x64-cond": ("edm_imagenet64_ema",),
    "cm-edm-lsun-bedroom-256x256": ("edm_bedroom256_ema",),
    "cm-edm-lsun-cat-256x256": ("edm_cat256_ema",),
    "p2-ffhq-256x256": ("p2-ffhq",),
}


# Karras et al., arXiv 2206.00364, 2006.06676 and 2312.02696, Sauer et al., arXiv 2202.00273, Dhariwal and Nichol, arXiv
# 2105.05233, and the page of DDO, with their repositories' pages.
_FIDS = {
    "cifar10": ("CIFAR-10", 2.42), "cifar10u-cifar-ada-best-fid": ("CIFAR-10", 2.92),
    "cifar10c-cifar-ada-best-fid": ("CIFAR-10", 2.42),
    "stylegan-xl-cifar10": ("CIFAR-10", 1.85), "stylegan-xl-imagenet64": ("ImageNet-64", 1.52),
    "edm-cifar10-32x32-cond-vp": ("CIFAR-10", 1.79), "edm-cifar10-32x32-uncond-vp": ("CIFAR-10", 1.97),
    "edm-ffhq-64x64-uncond-vp": ("FFHQ-64", 2.39), "edm-afhqv2-64x64-uncond-vp": ("AFHQv2-64", 1.96),
    "edm-imagenet-64x64-cond-adm": ("ImageNet-64", 1.36),
    "edm2-img64-s-1073741-0.075": ("ImageNet-64", 1.58), "edm2-img64-m-2147483-0.060": ("ImageNet-64", 1.43),
    "edm2-img64-l-1073741-0.040": ("ImageNet-64", 1.33), "edm2-img64-xl-0671088-0.040": ("ImageNet-64", 1.33),
    "edm-cifar10-cond-vp-ddo": ("CIFAR-10", 1.30), "edm-cifar10-uncond-vp-ddo": ("CIFAR-10", 1.38),
    "edm2-img64-s-ddo": ("ImageNet-64", 0.97),
    "adm-lsun-bedroom-256x256": ("LSUN bedroom-256", 1.90), "adm-lsun-cat-256x256": ("LSUN cat-256", 5.57),
    "adm-lsun-horse-256x256": ("LSUN horse-256", 2.57),
}  # fmt: skip


def _networks(
    kind: str,
    family: str,
    license: str | None,
    url_before_name: str,
    resolutions: dict[str, int],
    prefix: str = "",
    page: str | None = None,
    untried: bool = False,
) -> list[ZooEntry]:
    """Entries `prefix + name` for the files `url_before_name + name + ".pkl"`."""
    return [
        ZooEntry(
            name=prefix + name,
            kind=kind,
            family=family,
            resolution=resolution,
            license=license,
            url=f"{url_before_name}{name}.pkl",
            aliases=_ALIASES.get(prefix + name, ()),
            page=page,
            untried=untried,
            fid=_FIDS.get(prefix + name),
        )
        for name, resolution in resolutions.items()
    ]


def _adm(name: str, resolution: int, license: str | None, page: str, settings: str, url: str | None = None) -> ZooEntry:
    """Entry of a state dict of guided-diffusion or one of its descendants."""
    return ZooEntry(
        name=name,
        kind="denoiser",
        family="adm",
        resolution=resolution,
        license=license,
        url=url,
        aliases=_ALIASES.get(name, ()),
        settings=f"image_size={resolution},{settings}",
        fid=_FIDS.get(name),
        page=page,
        untried=True,
    )


_OLD = "num_head_channels=64,attention_order=old,noise_schedule=linear"
_EDM_OF_OPENAI = "num_head_channels=64,preconditioning=edm"


ENTRIES: tuple[ZooEntry, ...] = (
    # The built-in pair and what measures it; refine/digits/README.md tells how they were made.
    ZooEntry("digits", "generator", "stylegan2", 16, APACHE, path=_DIGITS / "digits.pkl"),
    ZooEntry("edm-digits", "denoiser", "edm", 16, APACHE, path=_DIGITS / "edm-digits.pkl"),
    ZooEntry("digits-detector.pt", "detector", "digits", None, APACHE, path=_DIGITS / "digits-detector.pt"),
    *(
        ZooEntry(f"digits-{split}.{suffix}", kind, "digits", 16, license, path=_DIGITS / f"digits-{split}.{suffix}")
        for suffix, kind, license in (("npz", "fid-reference", APACHE), ("zip", "dataset", UCI_DIGITS))
        for split in ("train", "selection", "test")
    ),
    # StyleGAN2-ADA (PyTorch); `cifar10` is class-conditional.
    *_networks(
        "generator", "stylegan2", NVIDIA_SOURCE_CODE, f"{_ADA}/",
        {
            "ffhq": 1024, "metfaces": 1024, "afhqcat": 512, "afhqdog": 512, "afhqwild": 512, "cifar10": 32,
            "brecahad": 512,
        },
    ),
    *_networks(
        "generator", "stylegan2", NVIDIA_SOURCE_CODE, f"{_ADA}/paper-fig11b-cifar10/",
        {"cifar10u-cifar-ada-best-fid": 32, "cifar10c-cifar-ada-best-fid": 32},
    ),
    *_networks(
        "generator", "stylegan2", NVIDIA_SOURCE_CODE, f"{_ADA}/transfer-learning-source-nets/",
        {
            "ffhq-res256-mirror-paper256-noaug": 256,
            "ffhq-res512-mirror-stylegan2-noaug": 512,
            "ffhq-res1024-mirror-stylegan2-noaug": 1024,
            "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5": 256,
            "lsundog-res256-paper256-kimg100000-noaug": 256,
        },
    ),
    # The StyleGAN3 repository's StyleGAN2 and StyleGAN3.
    *_networks(
        "generator", "stylegan2", NVIDIA_SOURCE_CODE, f"{_NGC}/stylegan2/versions/1/files/",
        {
            "stylegan2-cifar10-32x32": 32,
            "stylegan2-ffhq-256x256": 256, "stylegan2-ffhq-512x512": 512, "stylegan2-ffhq-1024x1024": 1024,
            "stylegan2-ffhqu-256x256": 256, "stylegan2-ffhqu-1024x1024": 1024,
            "stylegan2-afhqv2-512x512": 512,
            "stylegan2-afhqcat-512x512": 512, "stylegan2-afhqdog-512x512": 512, "stylegan2-afhqwild-512x512": 512,
            "stylegan2-celebahq-256x256": 256,
            "stylegan2-lsundog-256x256": 256,
            "stylegan2-brecahad-512x512": 512,
            "stylegan2-metfaces-1024x1024": 1024, "stylegan2-metfacesu-1024x1024": 1024,
        },
    ),
    *_networks(
        "generator", "stylegan3", NVIDIA_SOURCE_CODE, f"{_NGC}/stylegan3/versions/1/files/",
        {
            "stylegan3-t-ffhq-1024x1024": 1024, "stylegan3-r-ffhq-1024x1024": 1024,
            "stylegan3-t-ffhqu-1024x1024": 1024, "stylegan3-r-ffhqu-1024x1024": 1024,
            "stylegan3-t-ffhqu-256x256": 256, "stylegan3-r-ffhqu-256x256": 256,
            "stylegan3-t-metfaces-1024x1024": 1024, "stylegan3-r-metfaces-1024x1024": 1024,
            "stylegan3-t-metfacesu-1024x1024": 1024, "stylegan3-r-metfacesu-1024x1024": 1024,
            "stylegan3-t-afhqv2-512x512": 512, "stylegan3-r-afhqv2-512x512": 512,
        },
    ),
    # StyleGAN-XL, whose files bear the names of StyleGAN2-ADA's.
    *_networks(
        "generator", "stylegan-xl", None, f"{_XL}/",
        {"cifar10": 32, "imagenet64": 64, "ffhq256": 256, "ffhq512": 512, "ffhq1024": 1024},
        prefix="stylegan-xl-", untried=True,
    ),
    # EDM; `baseline-*` are the re-implemented earlier models that its paper compares with.
    *_networks(
        "denoiser", "edm", CC_BY_NC_SA, f"{_CDN}/edm/pretrained/",
        {
            "edm-cifar10-32x32-cond-vp": 32, "edm-cifar10-32x32-cond-ve": 32,
            "edm-cifar10-32x32-uncond-vp": 32, "edm-cifar10-32x32-uncond-ve": 32,
            "edm-ffhq-64x64-uncond-vp": 64, "edm-ffhq-64x64-uncond-ve": 64,
            "edm-afhqv2-64x64-uncond-vp": 64, "edm-afhqv2-64x64-uncond-ve": 64,
            "edm-imagenet-64x64-cond-adm": 64,
        },
    ),
    *_networks(
        "denoiser", "edm", CC_BY_NC_SA, f"{_CDN}/edm/pretrained/baseline/",
        {
            "baseline-cifar10-32x32-uncond-vp": 32, "baseline-cifar10-32x32-uncond-ve": 32,
            "baseline-imagenet-64x64-cond-adm": 64,
        },
    ),
    # Direct discriminative optimization: EDM and EDM2 networks, trained further.
    *_networks(
        "denoiser", "edm", CC_BY_NC_SA, f"{_DDO_PAGE}/resolve/main/",
        {"edm-cifar10-uncond-vp-ddo": 32, "edm-cifar10-cond-vp-ddo": 32},
        page=_DDO_PAGE, untried=True,
    ),
    *_networks(
        "denoiser", "edm2", CC_BY_NC_SA, f"{_DDO_PAGE}/resolve/main/", {"edm2-img64-s-ddo": 64},
        page=_DDO_PAGE, untried=True,
    ),
    # One-step generators of SiD (Score identity Distillation), which do not tell their sigma_init.
    *(
        ZooEntry(
            name, "generator", "edm", resolution, CC_BY_NC_SA, url=f"{_SID_PAGE}/resolve/main/{folder}-{kimg}.pkl",
            page=_SID_PAGE, untried=True,
        )
        for name, resolution, folder, kimg in (
            ("sid-cifar10-32x32-uncond", 32, "cifar10-uncond/alpha1.2/network-snapshot-1.200000", 403968),
            ("sid-cifar10-32x32-cond", 32, "cifar10-cond/alpha1.2/network-snapshot-1.200000", 713312),
            ("sid-imagenet-64x64-cond", 64, "imagenet64/alpha1.2/network-snapshot-1.200000", 939176),
            ("sid-ffhq-64x64-uncond", 64, "ffhq64/alpha1.2/network-snapshot-1.200000", 498176),
            ("sid-afhqv2-64x64-uncond", 64, "afhq64/alpha1/network-snapshot-1.000000", 371712),
        )
    ),
    # guided-diffusion (ADM).
    *(
        _adm(name, resolution, MIT, _GUIDED_PAGE, settings, f"{_GUIDED}/{file}.pt")
        for name, resolution, file, settings in (
            ("adm-imagenet-64x64-cond", 64, "64x64_diffusion",
             "num_head_channels=64,attention_order=new,noise_schedule=cosine,dropout=0.1"),
            ("adm-imagenet-128x128-cond", 128, "128x128_diffusion",
             "num_heads=4,attention_order=old,noise_schedule=linear"),
            ("adm-imagenet-256x256-cond", 256, "256x256_diffusion", _OLD),
            ("adm-imagenet-256x256-uncond", 256, "256x256_diffusion_uncond", _OLD),
            ("adm-imagenet-512x512-cond", 512, "512x512_diffusion", _OLD),
            ("adm-lsun-bedroom-256x256", 256, "lsun_bedroom", f"{_OLD},dropout=0.1"),
            ("adm-lsun-cat-256x256", 256, "lsun_cat", f"{_OLD},dropout=0.1"),
            ("adm-lsun-horse-256x256", 256, "lsun_horse", f"{_OLD},dropout=0.1"),
        )
    ),
    # consistency_models: its EDM networks.
    *(
        _adm(name, resolution, MIT, _CONSISTENCY_PAGE, settings, f"{_CONSISTENCY}/{file}.pt")
        for name, resolution, file, settings in (
            ("cm-edm-imagenet-64x64-cond", 64, "edm_imagenet64_ema", f"{_EDM_OF_OPENAI},dropout=0.1"),
            ("cm-edm-lsun-bedroom-256x256", 256, "edm_bedroom256_ema", f"{_EDM_OF_OPENAI},dropout=0.1"),
            ("cm-edm-lsun-cat-256x256", 256, "edm_cat256_ema", f"{_EDM_OF_OPENAI},dropout=0.1"),
        )
    ),
    # P2 weighting; its files lie where only a browser can fetch them.
    *(
        _adm(f"p2-{name}-256x256", 256, None, _P2_PAGE, _OLD)
        for name in ("ffhq", "celebahq", "afhqdog", "metfaces", "cub", "flowers")
    ),
    # EDM2 in pixel space.
    *_networks(
        "denoiser", "edm2", CC_BY_NC_SA, f"{_CDN}/edm2/posthoc-reconstructions/",
        {
            "edm2-img64-s-1073741-0.075": 64, "edm2-img64-m-2147483-0.060": 64,
            "edm2-img64-l-1073741-0.040": 64, "edm2-img64-xl-0671088-0.040": 64,
            "edm2-img64-s-1073741-0.045": 64, "edm2-img64-xs-0134217-0.110": 64,
        },
        page=_EDM2_PAGE, untried=True,
    ),
    *(
        ZooEntry(name, "fid-reference", "inception", resolution, CC_BY_NC_SA, url=f"{_CDN}/edm/fid-refs/{name}")
        for name, resolution in {
            "cifar10-32x32.npz": 32, "ffhq-64x64.npz": 64, "afhqv2-64x64.npz": 64, "imagenet-64x64.npz": 64,
            "imagenet-64x64-baseline.npz": 64,
        }.items()
    ),
    # Statistics of EDM2, for Inception and DINOv2.
    *(
        ZooEntry(
            f"{name}.pkl", "fid-reference", "inception", resolution, CC_BY_NC_SA,
            url=f"{_CDN}/edm2/dataset-refs/{name}.pkl", page=_EDM2_PAGE, untried=True,
        )
        for name, resolution in {"img64": 64, "img512": 512}.items()
    ),
    ZooEntry(
        "inception-2015-12-05.pt", "detector", "inception", None, None,
        url=f"{_ADA}/metrics/inception-2015-12-05.pt",
        size=95_607_719,
        sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    ),
    ZooEntry("vgg16.pt", "detector", "vgg", None, None, url=f"{_ADA}/metrics/vgg16.pt"),
    ZooEntry(
        "dinov2_vitl14_pretrain.pth", "detector", "dinov2", None, APACHE,
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        page="https://github.com/facebookresearch/dinov2", untried=True,
    ),
    ZooEntry(
        "ViT-L-14-336px.pt", "detector", "clip", None, MIT,
        url=f"https://openaipublic.azureedge.net/clip/models/{_CLIP_SHA256}/ViT-L-14-336px.pt",
        sha256=_CLIP_SHA256, page="https://github.com/openai/CLIP", untried=True,
    ),
    ZooEntry(
        "inception-2015-12-05.pkl", "detector", "inception", None, None,
        url=f"{_NGC}/stylegan3/versions/1/files/metrics/inception-2015-12-05.pkl",
    ),
)  # fmt: skip
