"""Feature detector: a small digit classifier with the calling convention of the FID's Inception network.

Its features are not Inception's. A FID on them compares runs on these digits with each other and with nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from refine.digits.digits import NUM_CLASSES, RESOLUTION, Images

NUM_FEATURES = 64


class DigitDetector(nn.Module):
    """Classifier of digits; `torch.jit.script` turns it into the built-in file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.conv2, self.conv3 = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.features = nn.Linear(64 * (RESOLUTION // 4) ** 2, NUM_FEATURES)
        self.output = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        """The calling convention of the Inception detector.

        Args:
            img: Images [N, 1 or 3, H, W] uint8; colors are averaged, and sizes other than 16x16 are resized.
            return_features: Return features in place of probabilities.
            use_fp16: Ignored.
            no_output_bias: Leave out the bias before the softmax.

        Returns:
            Probabilities [N, 10], or features [N, 64].
        """
        features = self.extract(img)
        if return_features:
            return features
        logits = features @ self.output.weight.t()
        if not no_output_bias:
            logits = logits + self.output.bias
        return torch.softmax(logits, dim=1)

    def extract(self, img: Tensor) -> Tensor:
        """Features [N, 64] of images [N, 1 or 3, H, W], 0 to 255."""
        x = img.to(torch.float32).mean(dim=1, keepdim=True) / 127.5 - 1
        if x.shape[2] != 16 or x.shape[3] != 16:
            # functional.interpolate's operator: scripted as a whole, it would bring operators that older PyTorch lacks.
            x = torch._C._nn._upsample_bilinear2d_aa(x, [16, 16], False, None)
        x = functional.leaky_relu(self.conv1(functional.leaky_relu(self.conv0(x), 0.1)), 0.1)
        x = functional.avg_pool2d(x, 2)
        x = functional.leaky_relu(self.conv3(functional.leaky_relu(self.conv2(x), 0.1)), 0.1)
        x = functional.avg_pool2d(x, 2)
        return functional.leaky_relu(self.features(x.flatten(1)), 0.1)


def train_detector(images: Images, *, epochs: int = 30, batch: int = 64, lr: float = 1e-3) -> DigitDetector:
    """Cross entropy on images shifted by up to one pixel, with dropout before the output; Adam, linear decay."""
    detector = DigitDetector()
    steps = epochs * len(images) // batch
    optimizer = torch.optim.Adam(detector.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-2, total_iters=steps)
    for _ in tqdm(range(steps), desc="detector", unit="step"):
        index = torch.randint(len(images), [batch])
        dy, dx = torch.randint(-1, 2, [2]).tolist()
        features = detector.extract(images.pixels[index].roll((dy, dx), dims=(2, 3)))
        logits = detector.output(functional.dropout(features, 0.3))
        loss = functional.cross_entropy(logits, images.classes[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return detector.eval().requires_grad_(False)


def accuracy(detector: nn.Module, images: Images) -> float:
    """Share of images that are recognized correctly."""
    return float((detector(images.pixels).argmax(dim=1) == images.classes).float().mean())
