"""Makes the quickstart's text encoder: `python -m bigdiff.quickstart.train_clip --out DIR`.

Stable Diffusion conditions on a CLIP text model that was trained before and stays frozen. This is its small twin: two
towers, captions and pictures of the drawn scenes, and the contrastive loss of Radford et al. 2021 (figure 3). Of the
result only the text tower is kept; it is shipped in `bigdiff/quickstart/text_encoder`. Words that no caption uses keep
a zero embedding: the file then compresses to almost nothing, and a word that was never learnt says nothing. The
held-out combinations are new to it, as they are to the autoencoder and the UNet.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from bigdiff.models.components import load_tokenizer, token_ids
from bigdiff.models.encoders import in_range
from bigdiff.quickstart import scenes
from bigdiff.quickstart.components import MAX_LENGTH, write_tokenizer

_VOCABULARY: Final = 49408
_SIDE: Final = 12  # pixels a side that the picture tower sees: enough for colour, place and the outline
_BEGIN, _END = 49406, 49407


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides the resulting weights."""

    seed: int = 0
    scenes: int = 20_000
    steps: int = 1500
    batch: int = 256
    learning_rate: float = 2e-3
    warmup: int = 100
    hidden: int = 64
    layers: int = 2
    heads: int = 4


class Towers(nn.Module):
    """A text tower, a picture tower and the temperature between them."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.text = CLIPTextModel(configuration(plan))
        nn.init.zeros_(self.text.get_input_embeddings().weight)
        self.words = nn.Linear(plan.hidden, plan.hidden, bias=False)
        self.picture = nn.Sequential(
            nn.Linear(3 * _SIDE * _SIDE, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, plan.hidden)
        )
        self.temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, tokens: Tensor, pictures: Tensor) -> Tensor:
        """Cosines of all captions [B, L] with all pictures [B, 3, side, side], times the temperature: [B, B]."""
        states = self.text(tokens).last_hidden_state
        last = (tokens == _END).int().argmax(dim=1)  # the first end mark; padding repeats it
        captions = functional.normalize(self.words(states[torch.arange(len(tokens)), last]), dim=1)
        shown = functional.normalize(self.picture(pictures.flatten(1)), dim=1)
        cosines: Tensor = self.temperature.exp().clamp(max=100.0) * captions @ shown.T
        return cosines


def configuration(plan: Plan) -> CLIPTextConfig:
    """Of the text tower: CLIP's architecture, a few thousand times smaller."""
    return CLIPTextConfig(
        vocab_size=_VOCABULARY,
        hidden_size=plan.hidden,
        intermediate_size=4 * plan.hidden,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=plan.hidden,
        bos_token_id=_BEGIN,
        eos_token_id=_END,
        pad_token_id=_END,
        architectures=["CLIPTextModel"],
    )


def pictures(plan: Plan) -> Tensor:
    """The training scenes, uint8 [N, 3, side, side]."""
    stack = np.empty((plan.scenes, _SIDE, _SIDE, 3), np.uint8)
    for index in range(plan.scenes):
        drawn = scenes.render(scenes.scene(plan.seed, index), 48)
        stack[index] = np.asarray(drawn.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
    return torch.from_numpy(stack).permute(0, 3, 1, 2)


def train(plan: Plan, tokens: Tensor, shown: Tensor) -> Towers:
    """Contrast captions (int64 [N, L]) with pictures (uint8 [N, 3, side, side])."""
    torch.manual_seed(plan.seed)
    towers = Towers(plan)
    used = torch.unique(tokens)
    with torch.no_grad():
        towers.text.get_input_embeddings().weight[used] = torch.randn(len(used), plan.hidden) * 0.1
    optimizer = torch.optim.AdamW(towers.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    target = torch.arange(plan.batch)
    bar = tqdm(range(plan.steps), desc="train the towers", mininterval=5)
    for step in bar:
        warm = min(1.0, (step + 1) / plan.warmup)
        optimizer.param_groups[0]["lr"] = plan.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        rows = torch.from_numpy(np.random.default_rng((plan.seed, step)).integers(plan.scenes, size=plan.batch))
        cosines = towers(tokens[rows], in_range(shown[rows]))
        loss = (functional.cross_entropy(cosines, target) + functional.cross_entropy(cosines.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return towers.eval()


def main() -> None:
    """Train both towers and write the text tower in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and the weights")
    parser.add_argument("--steps", type=int, default=Plan().steps, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=Plan().seed)
    arguments = parser.parse_args()
    plan = Plan(seed=arguments.seed, steps=arguments.steps)
    with TemporaryDirectory() as words:
        write_tokenizer(Path(words), MAX_LENGTH)
        tokenizer = load_tokenizer(words, MAX_LENGTH)
    drawn = [scenes.scene(plan.seed, index) for index in range(plan.scenes)]
    captions = [scenes.caption(scene, plan.seed, index) for index, scene in enumerate(drawn)]
    towers = train(plan, token_ids(tokenizer, captions), pictures(plan))
    towers.text.half().save_pretrained(arguments.out)
    sys.stdout.write(f"{arguments.out}: {len(set(captions))} captions learnt\n")


if __name__ == "__main__":
    main()
