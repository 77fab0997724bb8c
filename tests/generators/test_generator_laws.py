"""Every generator obeys the laws, and every law catches a generator that breaks it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ilo_lightning.checks.generators import check_generator
from ilo_lightning.generators.base import LatentPoint
from ilo_lightning.generators.checkpoints import CheckpointError, load_generator
from ilo_lightning.generators.dcgan import DCGAN
from ilo_lightning.generators.mnist_vae import MnistVAE
from ilo_lightning.generators.sequential import SequentialGenerator
from ilo_lightning.generators.stylegan2 import StyleGAN2
from tests.networks import small_stylegan2


def blocks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(5, 48), nn.BatchNorm1d(48), nn.Tanh(), nn.Unflatten(1, (12, 2, 2))),
        nn.Sequential(nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.Dropout(), nn.Softplus()),
        nn.Sequential(nn.ConvTranspose2d(8, 3, (4, 6), (2, 3), 1), nn.Tanh()),
    ]


def sequential() -> SequentialGenerator:
    return SequentialGenerator(blocks(), [5])


def tutorial_layout(path: Path, prefix: str = "main.", channels: int = 3) -> Path:
    """A state dict with random weights in the layout of PyTorch's DCGAN tutorial, 16×16."""
    torch.manual_seed(1)
    main = nn.Sequential(
        nn.ConvTranspose2d(10, 16, 4, 1, 0, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(True),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.ConvTranspose2d(8, channels, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    for module in main:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    state = {f"{prefix}{name}": tensor for name, tensor in main.state_dict().items()}
    torch.save(state, path)
    torch.save({"epoch": 3, "netG": state}, path.with_suffix(".wrapped"))
    return path


def random_stylegan2() -> StyleGAN2:
    """With colours that stay near [-1, 1], as those of a trained network do."""
    generator = small_stylegan2(dtype=torch.float32)
    for name, parameter in generator.named_parameters():
        if ".to_rgb." in name and "affine" not in name:
            parameter.mul_(0.1)
    return generator


def packaged_dcgan() -> DCGAN:
    try:
        return DCGAN()
    except CheckpointError as error:
        pytest.skip(str(error))


GENERATORS = {
    "StyleGAN2": lambda folder: random_stylegan2(),
    "faces64": lambda folder: load_generator("pkg://ilo_lightning.generators/weights/faces64.safetensors"),
    "sequential": lambda folder: sequential(),
    "DCGAN": lambda folder: DCGAN(tutorial_layout(folder / "dcgan.pt")),
    "gan-face-generate": lambda folder: packaged_dcgan(),
    "mnist_vae": lambda folder: MnistVAE(),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_every_law_holds(name: str, tmp_path: Path):
    verdicts = check_generator(GENERATORS[name](tmp_path))
    assert len(verdicts) >= 9
    assert [verdict for verdict in verdicts if not verdict.holds] == []


class DropsSkip(StyleGAN2):
    """As the original ILO does."""

    def advance(self, point: LatentPoint, layer: int) -> LatentPoint:
        deeper = super().advance(point, layer)
        return deeper if layer == point.layer else deeper.update({"rgb": torch.zeros_like(deeper["rgb"])})


class OneSeedForAll(SequentialGenerator):
    def sample(self, rngs, space=None) -> LatentPoint:
        return LatentPoint(0, {"latent": torch.randn(len(rngs), 5, generator=rngs[-1])})


class BatchNormalises(SequentialGenerator):
    def forward(self, point: LatentPoint) -> Tensor:
        image = super().forward(point)
        return image - image.mean(dim=0, keepdim=True)


class Detaches(SequentialGenerator):
    def forward(self, point: LatentPoint) -> Tensor:
        return super().forward(point).detach()


class WrongGradient(SequentialGenerator):
    def forward(self, point: LatentPoint) -> Tensor:
        image = super().forward(point)
        return image.detach() + 2 * (image - image.detach())


class AnyLayer(SequentialGenerator):
    def check_layer(self, point: LatentPoint, layer: int) -> None: ...


class HidesWeights(SequentialGenerator):
    """A tensor that is in no state dict."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.gains = [1.0]

    def load_state_dict(self, *args, **kwargs):
        self.gains = [0.5]
        return super().load_state_dict(*args, **kwargs)

    def forward(self, point: LatentPoint) -> Tensor:
        return super().forward(point) * self.gains[0]


class UnitRange(SequentialGenerator):
    def forward(self, point: LatentPoint) -> Tensor:
        return super().forward(point) / 2 + 0.5


def broken(kind: type[SequentialGenerator]) -> SequentialGenerator:
    return kind(blocks(), [5])


def drops_skip() -> StyleGAN2:
    whole = small_stylegan2(dtype=torch.float32)
    generator = DropsSkip(**whole.config)
    generator.load_state_dict(whole.state_dict())
    return generator.eval().requires_grad_(False)


def trainable() -> SequentialGenerator:
    return sequential().requires_grad_(True)


def training() -> SequentialGenerator:
    return sequential().train()


@pytest.mark.parametrize(
    ("make", "law", "why"),
    [
        (drops_skip, "continuity in z", "advancing from layer 0 to 1 changes the image"),
        (lambda: broken(OneSeedForAll), "randomness", "depends on how many are drawn"),
        (lambda: broken(BatchNormalises), "batch = one at a time", "influence each other"),
        (lambda: broken(Detaches), "gradients", "has no gradient to latent at layer 0"),
        (lambda: broken(WrongGradient), "gradients", "not that of central differences"),
        (lambda: broken(AnyLayer), "layers", "raises no ValueError"),
        (lambda: broken(HidesWeights), "weights", "doesn't restore its images"),
        (lambda: broken(UnitRange), "images", r"in \[0, 1\]\?"),
        (trainable, "frozen", "weights want gradients"),
        (training, "frozen", "training mode"),
    ],
)
def test_every_law_catches_who_breaks_it(make, law: str, why: str):

    (verdict,) = [verdict for verdict in check_generator(make()) if verdict.law == law]
    assert not verdict.holds and re.search(why, verdict.detail)


def test_dcgan_is_the_tutorial_s_network(tmp_path: Path):
    """Against the network as the tutorial writes it down; wrappings and DataParallel's prefix don't matter."""
    path = tutorial_layout(tmp_path / "dcgan.pt")
    state = torch.load(path, weights_only=True)
    generator = DCGAN(path)
    z = torch.randn(2, 10)
    x = z[:, :, None, None]
    for index, (stride, padding) in enumerate([(1, 0), (2, 1), (2, 1)]):
        x = nn.functional.conv_transpose2d(x, state[f"main.{3 * index}.weight"], stride=stride, padding=padding)
        if index < 2:
            norm = [state[f"main.{3 * index + 1}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            x = nn.functional.batch_norm(x, *norm, training=False).relu()
    torch.testing.assert_close(generator(LatentPoint(0, {"latent": z})), x.tanh())
    assert generator.image_shape == (3, 16, 16) and generator.num_layers == 3
    for other in (path.with_suffix(".wrapped"), tutorial_layout(tmp_path / "parallel.pt", prefix="module.main.")):
        torch.testing.assert_close(DCGAN(other)(LatentPoint(0, {"latent": z})), x.tanh())


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"not a pickle"), "begins with b'not a pi', as no checkpoint does"),
        (lambda path: torch.save({"weights": 3}, path), "holds no state dict"),
        (lambda path: torch.save(nn.Linear(2, 2).state_dict(), path), "no DCGAN.*this file has weight"),
        (
            lambda path: torch.save(nn.Linear(2, 2), path),
            r"names 'torch\.nn\.modules\.linear\.Linear'.*: save state_dict",
        ),
    ],
)
def test_a_foreign_dcgan_checkpoint_is_refused(write, words: str, tmp_path: Path):
    write(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=words):
        DCGAN(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_sequential_loads_what_was_saved(suffix: str, tmp_path: Path):
    from safetensors.torch import save_file

    first, path = nn.Sequential(*blocks()), tmp_path / f"net{suffix}"
    (torch.save if suffix == ".pt" else save_file)(first.state_dict(), path)
    fresh = blocks()
    for block in fresh:
        for parameter in block.parameters():
            nn.init.normal_(parameter)
    loaded = SequentialGenerator(fresh, [5], checkpoint=path)
    z = torch.randn(2, 5)
    torch.testing.assert_close(loaded(LatentPoint(0, {"latent": z})), first.eval()(z))
    assert set(loaded.provenance) == {"checkpoint", "sha256"}
    with pytest.raises(CheckpointError, match=r"does not fit these blocks: lacks 2\.0\.weight"):
        SequentialGenerator(blocks(), [5], checkpoint=_without_last_block(path))


def _without_last_block(path: Path) -> Path:
    from safetensors.torch import load_file

    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    kept = path.with_name("kept.pt")
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("2.")}, kept)
    return kept


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"blocks": [], "latent_shape": [5]}, r"blocks=\[\]"),
        ({"blocks": [nn.Linear(5, 3)], "latent_shape": []}, "latent_shape"),
        ({"blocks": [nn.Linear(5, 3)], "latent_shape": [4]}, r"blocks\[0\]: Linear fails on a \(1, 4\)"),
        ({"blocks": [nn.Linear(5, 3)], "latent_shape": [5]}, "expected an image"),
        ({"blocks": [nn.Linear(5, 3)], "latent_shape": [5], "output_range": [1, 0]}, "output_range"),
    ],
)
def test_sequential_refuses_what_makes_no_images(arguments: dict, words: str):
    with pytest.raises(ValueError, match=words):
        SequentialGenerator(**arguments)


def test_sequential_maps_its_range():
    generator = SequentialGenerator([nn.Sequential(nn.Sigmoid(), nn.Unflatten(1, (1, 2, 2)))], [4], output_range=[0, 1])
    images = generator(LatentPoint(0, {"latent": torch.tensor([[-1e3, 0.0, 1e3, 0.0]])}))
    torch.testing.assert_close(images, torch.tensor([[[[-1.0, 0.0], [1.0, 0.0]]]]))
