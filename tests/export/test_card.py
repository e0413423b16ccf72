from pathlib import Path


def test_the_card_states_the_runs_numbers(pipeline: Path) -> None:
    card = (pipeline / "README.md").read_text()
    for line in (
        "# toy",
        "| optimizer steps | 7 |",
        "| images seen | 56 |",
        "| weights | exponential moving average of decay 0.9, float32 |",
        "| resolution | 8 px (4 x 4 latents) |",
        "| target | epsilon |",
        "| captions dropped | 30% |",
        f"| latent set | manifest sha256 {'ab' * 32} |",
        "| code | bigdiff commit unknown |",  # this run folder has no versions.json
    ):
        assert line in card.splitlines()
