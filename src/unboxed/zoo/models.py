"""The zoo's networks: (N, 1, 28, 28), as `inputs.encode` gives them, to logits (N, 10)."""

from __future__ import annotations

from torch import Tensor, nn


class LinearReLU(nn.Module):
    """relu(W x + b): logits clamped at zero, so that most gradients of a wrong class are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 10)
        nn.init.ones_(self.fc1.bias)  # a class that starts below zero for every input has no gradient and never learns
        self.relu1 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.relu1(self.fc1(x.flatten(1)))
        return logits


class MnistCNN(nn.Module):
    """The network of PyTorch's MNIST example, without its log-softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.relu3 = nn.ReLU()
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))  # (N, 32, 26, 26)
        x = self.relu2(self.conv2(x))  # (N, 64, 24, 24)
        x = self.dropout1(self.pool(x))  # (N, 64, 12, 12)
        x = self.relu3(self.fc1(x.flatten(1)))  # (N, 128)
        logits: Tensor = self.fc2(self.dropout2(x))
        return logits


class DigitsCNN(nn.Module):
    """Small and quick: pooling after each convolution, for the 1,797 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.25)
        self.fc1 = nn.Linear(32 * 5 * 5, 64)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))  # (N, 16, 12, 12)
        x = self.pool2(self.relu2(self.conv2(x)))  # (N, 32, 5, 5)
        x = self.relu3(self.fc1(self.dropout(x.flatten(1))))  # (N, 64)
        logits: Tensor = self.fc2(x)
        return logits


class RobustCNN(nn.Module):
    """Strided, without pooling: of another build than the models it judges. To be trained against attacks.

    The architecture of Wong and Kolter, "Provable defenses against adversarial examples" (2018), section 5; `widths`
    are those of the two convolutions and of the hidden layer.
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 100)) -> None:
        super().__init__()
        channels1, channels2, n_hidden = widths
        self.conv1 = nn.Conv2d(1, channels1, 4, stride=2, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels1, channels2, 4, stride=2, padding=1)
        self.relu2 = nn.ReLU()
        self.fc1 = nn.Linear(channels2 * 7 * 7, n_hidden)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(n_hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))  # (N, c1, 14, 14)
        x = self.relu2(self.conv2(x))  # (N, c2, 7, 7)
        logits: Tensor = self.fc2(self.relu3(self.fc1(x.flatten(1))))
        return logits
