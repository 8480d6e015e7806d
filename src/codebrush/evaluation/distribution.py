"""Distances between the distributions of real and generated pictures: FID and KID on any features."""

import warnings

import torch
from torch import Tensor, nn

from codebrush.errors import CodebrushError
from codebrush.optional import require

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance (Binkowski et al. 2018)


class _Identity(nn.Module):
    """The feature network for torchmetrics: passes on features that were computed before."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class SetDistances:
    """Frechet distance (Heusel et al. 2017) and kernel distance (Binkowski et al. 2018) of features `width` wide.

    These are torchmetrics' FID and KID in double precision. The kernel is (x y + 1)^3, which suits unit vectors of any
    width. The values only compare with others on the same features, not with those on the Inception network's. All
    features are kept until the end: 4 MB for 1,000 pictures with 512 values each.

    Raises:
        CodebrushError: if torchmetrics is not installed.
    """

    def __init__(self, width: int):
        require("torchmetrics", "measuring needs")
        from torchmetrics.image.fid import FrechetInceptionDistance

        self._frechet = FrechetInceptionDistance(_Identity(width)).set_dtype(torch.float64)
        self._real: list[Tensor] = []
        self._made: list[Tensor] = []

    def update(self, real: Tensor, made: Tensor) -> None:
        """Add the features (B, E) of real pictures, and of the pictures made from them."""
        for features, store, is_real in ((real, self._real, True), (made, self._made, False)):
            store.append(features.double().cpu())
            self._frechet.update(store[-1], real=is_real)

    def compute(self) -> dict[str, float]:
        """`rfid`, and `kid` with its standard deviation `kid_std` over 100 random subsets of `kid_subset` pictures.

        A subset has 1,000 pictures, or half of all if there are fewer than 2,000.

        Raises:
            CodebrushError: if there are fewer than four pictures.
        """
        from torchmetrics.image.kid import KernelInceptionDistance

        pictures = sum(len(part) for part in self._real)
        if pictures < 4:
            raise CodebrushError(f"{pictures} pictures are too few to compare as a set: give four or more")
        size = min(SUBSET_SIZE, pictures // 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns that it keeps all features
            width = self._real[0].shape[1]
            kernel = KernelInceptionDistance(_Identity(width), subsets=SUBSETS, subset_size=size, gamma=1.0, coef=1.0)
        for part, is_real in ((self._real, True), (self._made, False)):
            kernel.update(torch.cat(part), real=is_real)
        with torch.random.fork_rng(devices=[]):  # it draws its subsets with the global generator
            torch.manual_seed(0)
            mean, deviation = kernel.compute()
        figures = {"rfid": self._frechet.compute().item(), "kid": mean.item(), "kid_std": deviation.item()}
        return {**figures, "kid_subset": size}
