from bigdiff.models import probes


def test_the_pictures_are_what_they_say() -> None:
    assert probes.disc((1, 2, 3)).getpixel((128, 128)) == (1, 2, 3)
    assert probes.disc((1, 2, 3)).getpixel((0, 0)) == (255, 255, 255)
    wide = probes.wings(32)
    assert wide.size == (128, 64)
    assert [wide.getpixel((place, 32)) for place in (0, 32, 95, 127)] == [
        (0, 255, 0),
        (255, 0, 0),
        (255, 0, 0),
        (0, 0, 255),
    ]


def test_a_refusal_names_the_network_and_what_is_wrong() -> None:
    assert str(probes.refused("--clip", "1 in place of 2")).startswith(
        "--clip does not give its golden values (1 in place of 2)"
    )
