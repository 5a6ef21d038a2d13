"""Scenes: labels agree with what was drawn, to the pixel; scenes repeat; contents are what is seen."""

import numpy as np
import pytest

from training import scenes, stuff
from training.art import Pack
from training.judge import halved
from training.nouns import LABEL, NAMES, STUFF, THINGS
from training.scenes import Content


@pytest.fixture(scope="module")
def drawn(pack: Pack, textures: scenes.Textures) -> list[scenes.Scene]:
    return [scenes.render(11, index, [pack], textures) for index in range(40)]


def test_a_disc_covers_what_its_label_says(drawn: list[scenes.Scene]) -> None:
    """Labels of things are exactly where the image is magenta, but for the antialiased edge."""
    things = [LABEL[thing.name] for thing in THINGS]
    for scene in drawn:
        red, green, blue = scene.image.astype(int).transpose(2, 0, 1)
        painted = np.minimum(red, blue) - green > 100
        labelled = np.isin(scene.labels, things)
        edge = np.zeros_like(labelled)
        for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
            edge |= np.roll(labelled, shift, axis) != labelled
        assert np.array_equal(painted[~edge], labelled[~edge])


def test_a_lone_disc_has_the_size_asked_for(drawn: list[scenes.Scene]) -> None:
    smallest, largest = (size * scenes.SIZE / scenes.CANVAS for size in scenes.THING_SIZES[0])
    for scene in drawn:
        if len(scene.content.things) == 1:
            area = (scene.labels == LABEL[scene.content.things[0]]).sum()
            assert 0.85 * smallest < 2 * np.sqrt(area / np.pi) < largest + 1


def test_every_content_noun_is_visible_and_nothing_else(drawn: list[scenes.Scene]) -> None:
    for scene in drawn:
        assert scene.image.shape == (scenes.SIZE, scenes.SIZE, 3)
        assert scene.image.dtype == scene.labels.dtype == np.uint8
        assert {NAMES[label - 1] for label in np.unique(scene.labels)} == set(scene.content.nouns)


def test_a_scene_is_a_function_of_its_seed_and_index(pack: Pack, textures: scenes.Textures) -> None:
    one, again, other = (scenes.render(11, index, [pack], textures) for index in (4, 4, 5))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.labels, again.labels)
    assert one.content == again.content
    assert not np.array_equal(one.image, other.image)


def test_both_sizes_show_the_same(pack: Pack, textures: scenes.Textures) -> None:
    small, large = (scenes.render(11, 4, [pack], textures, size) for size in scenes.SIZES)
    assert large.image.shape == (128, 128, 3)
    assert large.labels.shape == (128, 128)
    assert small.content == large.content
    assert np.abs(halved(large.image[None])[0].astype(int) - small.image).max() <= 1
    assert (large.labels[::2, ::2] != small.labels).mean() < 0.1


def test_labels_shrink_by_majority() -> None:
    labels = np.full((scenes.CANVAS, scenes.CANVAS), 7, np.uint8)
    labels[0, 0] = 9  # one of four: outvoted
    labels[2, 2] = labels[2, 3] = labels[3, 2] = 9  # three of four
    small = scenes._shrink_labels(labels)
    assert (small[0, 0], small[1, 1]) == (7, 9)
    assert (small == 9).sum() == 1


def test_nouns_of_a_content_are_named_once() -> None:
    assert Content(("cat", "dog", "cat"), "grass", "sky").nouns == ("cat", "dog", "grass", "sky")
    assert Content(("cat",), "grass", None).nouns == ("cat", "grass")


def test_the_world_is_24_things_and_8_stuffs() -> None:
    assert (len(THINGS), len(STUFF)) == (24, 8)
    assert set(stuff.PAINTERS) == {noun.name for noun in STUFF}
    assert sorted(LABEL.values()) == list(range(1, 33))
    assert sum(scenes.BACKDROPS.values()) == pytest.approx(1)
