"""The networks of an autoencoder stage: built, held against the stage's sets, and made a task."""

from dataclasses import dataclass

import torch
from torch import nn

from bigdiff.config.schema import Autoencoder, Stage
from bigdiff.data.course import Course
from bigdiff.data.excerpt import first
from bigdiff.data.images import ImageReader, ImageSet
from bigdiff.engine.deepspeed import Engine
from bigdiff.evaluate.reconstruction import Reconstructor
from bigdiff.models import learning
from bigdiff.models.autoencoder import Codec, build
from bigdiff.models.discriminator import PatchDiscriminator
from bigdiff.models.perceptual import Perceptual
from bigdiff.models.perceptual import load as load_perceptual
from bigdiff.runtime.world import World
from bigdiff.train.autoencoding import Autoencoding
from bigdiff.train.data import Sets, fit_shapes, framing


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """What an autoencoder stage computes with."""

    stage: Stage
    config: Autoencoder
    module: Codec  # what the engine gets
    perceptual: Perceptual | None

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, in a fixed order."""
        return self.module.trained()

    def untrained(self) -> dict[str, nn.Parameter]:
        """Those that model.frozen names."""
        return {name: one for name, one in self.module.named_parameters() if not one.requires_grad}

    def loaded(self) -> dict[str, torch.Tensor]:
        """What learns and was loaded: nothing, all begins at random."""
        return {}

    def kept(self) -> set[str]:
        """Their names: their values are the run's own."""
        return set(self.untrained())


def load(stage: Stage) -> Networks:
    """The networks of `stage`, the trained ones with the seed's weights.

    Raises:
        UsageError: when one cannot be built, a file of LPIPS cannot be used, or model.frozen fits no parameters.
    """
    config = stage.model.autoencoder
    assert config is not None, "asked for of an autoencoder stage"
    perceptual = load_perceptual(config.perceptual_vgg, config.perceptual_heads) if config.perceptual_weight else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)
        vae = build(config, stage.resolution)
        discriminator = PatchDiscriminator(config.disc_channels, config.disc_layers) if config.disc_weight else None
    if stage.engine.gradient_checkpointing is True:
        vae.enable_gradient_checkpointing()
    module = Codec(vae, discriminator)
    learning.freeze(module.trained(), stage.model.frozen)
    return Networks(stage=stage, config=config, module=module.train(), perceptual=perceptual)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What must be made before the engine takes the weights, and what is made after it."""

    networks: Networks
    last_layer: torch.Size  # shape of the decoder's last weight, which ZeRO-3 takes apart
    preview: Reconstructor | None

    def task(self, engine: Engine, world: World) -> Autoencoding:
        """The stage's task under `engine`. LPIPS is computed in float32: it squares small differences."""
        perceptual = self.networks.perceptual
        return Autoencoding(
            stage=self.networks.stage,
            config=self.networks.config,
            engine=engine,
            world=world,
            perceptual=None if perceptual is None else perceptual.to(world.device),
            last_layer=self.last_layer,
        )


def prepare(networks: Networks, sets: Sets, course: Course, world: World) -> Prepared:
    """Hold the sets against the stage, and read what its previews show; collective.

    Raises:
        UsageError: for a set that the stage cannot be trained on.
    """
    fit_shapes(networks.stage, sets)
    return Prepared(
        networks=networks,
        last_layer=networks.module.vae.decoder.conv_out.weight.shape,
        preview=reconstructor(networks, sets, course, world),
    )


def reconstructor(networks: Networks, sets: Sets, course: Course, world: World) -> Reconstructor | None:
    """What draws the stage's pictures, if it wants any: the first ones of its data, read by rank 0 for all."""
    preview = networks.stage.preview
    if not preview.every:
        return None
    shown = None
    if world.first:
        reader = ImageReader(pictures(sets), framing(networks.stage))
        shown = torch.cat([some.contiguous() for some in first(reader, course, preview.count)])
    frozen = {name: one.detach().clone() for name, one in networks.untrained().items()}
    return Reconstructor(networks.config, world.first_says(shown), frozen)


def pictures(sets: Sets) -> list[ImageSet]:
    """The sets of an autoencoder stage: the rules let no others through."""
    return [one for one in sets if isinstance(one, ImageSet)]
