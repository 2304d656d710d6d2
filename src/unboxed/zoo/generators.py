"""The zoo's generators: latent codes (N, 64) to images (N, 1, 28, 28) in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LATENT_SIZE, N_DIGITS = 64, 10


class BatchScale(nn.Module):
    """Batch normalization without its mean and its bias: channels (N, C, H, W) divided by their root mean square."""

    mean_square: Tensor

    def __init__(self, n_channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.register_buffer("mean_square", torch.ones(n_channels))

    def forward(self, h: Tensor) -> Tensor:
        mean_square = self.mean_square
        if self.training:
            mean_square = h.square().mean((0, 2, 3))
            self.mean_square.lerp_(mean_square.detach(), self.momentum)
        return h * (self.weight * (mean_square + self.eps).rsqrt())[:, None, None]


class DigitGenerator(nn.Module):
    """A small generator whose first ten latents choose the digit: the largest of them.

    The choice is passed on as a one-hot vector; its gradient is that of the softmax (straight through), so that codes
    can be optimized. Only the last layer has a bias: where all units of a layer are zero, nothing is drawn, and a unit
    that is set to zero takes away what it draws. `widths` are the channels at 7x7, 14x14 and 28x28.
    """

    def __init__(self, widths: tuple[int, int, int] = (64, 48, 24)) -> None:
        super().__init__()
        c1, c2, c3 = widths
        self.fc = nn.Linear(LATENT_SIZE, c1 * 7 * 7, bias=False)
        self.unflatten = nn.Unflatten(1, (c1, 7, 7))
        self.scale1 = BatchScale(c1)
        self.relu1 = nn.ReLU()
        self.up2 = nn.ConvTranspose2d(c1, c2, 4, stride=2, padding=1, bias=False)
        self.scale2 = BatchScale(c2)
        self.relu2 = nn.ReLU()
        self.up3 = nn.ConvTranspose2d(c2, c3, 4, stride=2, padding=1, bias=False)
        self.scale3 = BatchScale(c3)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(c3, 1, 3, padding=1)
        self.sigmoid = nn.Sigmoid()
        with torch.no_grad():
            self.conv4.bias.fill_(-4.0)  # type: ignore[union-attr]

    def forward(self, z: Tensor) -> Tensor:
        x = self.relu1(self.scale1(self.unflatten(self.fc(self.code(z)))))  # (N, c1, 7, 7)
        x = self.relu2(self.scale2(self.up2(x)))  # (N, c2, 14, 14)
        x = self.relu3(self.scale3(self.up3(x)))  # (N, c3, 28, 28)
        images: Tensor = self.sigmoid(self.conv4(x))
        return images

    @staticmethod
    def code(z: Tensor) -> Tensor:
        """z with its first ten entries replaced by the one-hot vector of their largest."""
        soft = z[:, :N_DIGITS].softmax(1)
        hard = nn.functional.one_hot(soft.argmax(1), N_DIGITS).to(soft)
        return torch.cat([hard + soft - soft.detach(), z[:, N_DIGITS:]], 1)
