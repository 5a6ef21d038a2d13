import numpy as np
import pytest
from PIL import Image

from goca.imaging import draw
from goca.imaging.draw import heatmap, overlay
from goca.imaging.palette import palette

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
MAGMA_MIDDLE = (183, 55, 121)  # #b73779


def block_labels(height, width):
    """Class 1 in a block in the middle, background around it."""
    labels = np.zeros((height, width), dtype=np.uint16)
    labels[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 1
    return labels


def grey(width, height, level=100):
    return Image.new("RGB", (width, height), (level,) * 3)


def parts(sheet, width, height):
    """ImageLike and legend of a sheet whose image is so large."""
    beside = sheet.width > width
    corner = (width, 0) if beside else (0, height)
    return sheet.crop((0, 0, width, height)), sheet.crop((*corner, *sheet.size))


def colours_of(image):
    return {colour for _, colour in image.getcolors(maxcolors=image.width * image.height)}


class TestPalette:
    def test_background_is_black_and_colours_are_distinct(self):
        colours = palette(255)
        assert (colours.shape, colours.dtype) == ((256, 3), np.uint8)
        assert tuple(colours[0]) == BLACK
        assert len(np.unique(colours, axis=0)) == 256

    def test_the_first_forty_are_told_apart(self):
        colours = palette(40).astype(int)
        distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
        assert distances[~np.eye(41, dtype=bool)].min() > 45

    def test_no_class_is_nearly_black(self):
        assert palette(255)[1:].max(axis=1).min() >= 90

    def test_a_shorter_one_begins_a_longer_one(self):
        np.testing.assert_array_equal(palette(7), palette(300)[:8])

    def test_after_255_it_repeats(self):
        np.testing.assert_array_equal(palette(257)[256:], palette(2)[1:])


class TestOverlay:
    def test_background_stays_regions_are_tinted_borders_are_solid(self):
        labels = block_labels(400, 600)
        image, _ = parts(overlay(grey(600, 400), labels, ["cat"]), 600, 400)
        pixels = np.asarray(image)
        colour = palette(1)[1]
        assert (pixels[labels == 0] == 100).all()
        np.testing.assert_allclose(pixels[200, 300], 0.5 * 100 + 0.5 * colour, atol=1)
        # A 300th of the long side: two pixels, on the inside.
        assert (pixels[100:102, 200:400] == colour).all()
        assert (pixels[102, 200:400] != colour).any()

    def test_both_classes_of_a_border_get_their_line(self):
        labels = np.ones((400, 500), dtype=np.uint16)
        labels[:, 250:] = 2
        pixels = np.asarray(overlay(grey(500, 400), labels, ["cat", "dog"]))[200]
        np.testing.assert_array_equal(pixels[248:252], palette(2)[[1, 1, 2, 2]])

    def test_legend_lists_what_occurs_in_its_colour(self):
        sheet = overlay(grey(600, 400), block_labels(400, 600), ["cat", "dog"])
        _, legend = parts(sheet, 600, 400)
        first, second = map(tuple, palette(2)[1:].tolist())
        assert first in colours_of(legend)
        assert second not in colours_of(legend)

    def test_legend_mentions_what_does_not_occur(self):
        labels = block_labels(400, 600)
        with_dog = overlay(grey(600, 400), labels, ["cat", "dog"])
        assert with_dog.height > overlay(grey(600, 400), labels, ["cat"]).height

    @pytest.mark.parametrize(
        ("width", "height", "factor"), [(64, 64, 6), (64, 17, 6), (97, 383, 2), (384, 53, 1), (431, 211, 1)]
    )
    def test_small_images_are_enlarged_by_a_whole_number(self, width, height, factor):
        sheet = overlay(grey(width, height), block_labels(height, width), ["cat"])
        image, legend = parts(sheet, factor * width, factor * height)
        assert (np.asarray(image)[0] == 100).all()
        assert legend.getpixel((0, 0)) == WHITE
        assert min(legend.size) >= 40

    def test_an_upright_image_has_its_legend_beside_it(self):
        sheet = overlay(grey(307, 503), block_labels(503, 307), ["cat"])
        assert sheet.width > 307
        assert sheet.height == 503

    @pytest.mark.parametrize(("width", "height"), [(64, 64), (211, 431), (1009, 251)])
    def test_nothing_is_cut_off(self, width, height):
        """150 classes, one with a long name: every swatch is there and the rim of the paper stays white."""
        labels = (np.arange(width * height, dtype=np.uint64) % 151).astype(np.uint16).reshape(height, width)
        names = ["a very long name that goes on and on " * 5, *(f"class number {i}" for i in range(149))]
        sheet = overlay(grey(width, height), labels, names)
        factor = -(-384 // max(width, height))
        _, legend = parts(sheet, factor * width, factor * height)
        if height > width:
            legend = legend.crop((0, 0, legend.width, sheet.height))
        pixels = np.asarray(legend)
        rim = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3)])
        assert (rim == 255).all()
        swatches = {tuple(colour) for colour in palette(150)[1:].tolist()}
        assert swatches <= colours_of(legend)

    @pytest.mark.parametrize("name", ["crème brûlée", "two\nlines", "猫", ""])
    def test_any_name_can_be_written(self, name):
        sheet = overlay(grey(431, 211), block_labels(211, 431), [name])
        assert tuple(palette(1)[1].tolist()) in colours_of(parts(sheet, 431, 211)[1])

    def test_accents_are_dropped_and_other_scripts_numbered(self):
        def legend(*names):
            return overlay(grey(431, 211), block_labels(211, 431), names).tobytes()

        assert legend("crème") == legend("creme")
        assert legend("猫") == legend("class 1")
        assert legend("cat") != legend("dog")

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
    def test_any_mode_of_image(self, mode):
        image = grey(400, 300).convert(mode)
        before = image.tobytes()
        sheet = overlay(image, block_labels(300, 400), ["cat"])
        assert sheet.mode == "RGB"
        assert image.tobytes() == before

    def test_an_image_of_another_size_is_refused(self):
        with pytest.raises(ValueError, match="match"):
            overlay(grey(401, 300), block_labels(300, 400), ["cat"])

    @pytest.mark.parametrize(("width", "height"), [(64, 64), (5000, 40), (17, 900), (431, 211)])
    def test_without_a_legend_it_has_the_images_size(self, width, height):
        drawn = overlay(grey(width, height), block_labels(height, width), ["cat"], legend=False)
        assert (drawn.mode, drawn.size) == ("RGB", (width, height))
        # Inside the block, away from its line.
        np.testing.assert_allclose(drawn.getpixel((width // 2, height // 2)), 50 + 0.5 * palette(1)[1], atol=1)

    @pytest.mark.parametrize(("width", "height"), [(5000, 40), (40, 5000), (640, 480), (480, 640), (2003, 1009)])
    def test_a_legend_of_few_classes_is_no_larger_than_sensible(self, width, height):
        labels = np.arange(width * height, dtype=np.uint64).reshape(height, width) % 6
        sheet = overlay(grey(width, height), labels.astype(np.uint16), ["cat", "dog", "grass", "sky", "tree"])
        legend = (sheet.width - width, sheet.height) if height > width else (sheet.width, sheet.height - height)
        # Half the image, or what a column or a line of the smallest type takes.
        assert legend[0] * legend[1] <= max(width * height / 2, 60 * width if width > height else 180 * height)

    def test_a_name_without_end_is_cut(self):
        sheet = overlay(grey(5000, 400), block_labels(400, 5000), ["x" * 1_000_000])
        assert sheet.size[1] < 560

    @pytest.mark.parametrize("thickness", [1, 2, 3, 7, 13])
    def test_outlines_have_their_thickness(self, thickness):
        side = 300 * thickness
        labels = np.zeros((side, side), np.uint16)
        labels[131:, :] = 1
        outline = (np.asarray(draw.painted(Image.new("RGB", (side, side)), labels, 1)) == palette(1)[1]).all(-1)
        assert np.flatnonzero(outline.all(1)).tolist() == list(range(131, 131 + thickness))
        assert outline.any(1).sum() == thickness

    def test_strips_do_not_show(self, monkeypatch):
        labels = np.random.default_rng(0).integers(0, 4, (19, 5)).repeat(37, 0).repeat(101, 1).astype(np.uint16)
        image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*labels.shape, 3), dtype=np.uint8))
        names = ["cat", "dog", "grass"]
        drawn = [overlay(image, labels, names, legend=False)]
        heat = [heatmap(image, labels / 3)]
        for rows in (1, 7, 1000):
            monkeypatch.setattr(draw, "STRIP", rows)
            drawn.append(overlay(image, labels, names, legend=False))
            heat.append(heatmap(image, labels / 3))
            np.testing.assert_array_equal(draw.pixel_counts(labels, 3), np.bincount(labels.ravel(), minlength=4))
        assert all(each == drawn[0] for each in drawn)
        assert all(each == heat[0] for each in heat)


class TestHeatmap:
    def test_ends_and_middle_of_the_scale(self):
        scores = np.array([[0, 0.5, 1]], dtype=np.float32).repeat(2, axis=0)
        pixels = np.asarray(heatmap(grey(3, 2, level=0), scores)).astype(int)
        expected = [0.65 * np.array(colour) for colour in [(0, 0, 4), MAGMA_MIDDLE, (252, 253, 191)]]
        np.testing.assert_allclose(pixels[0], expected, atol=2)

    def test_lightness_rises_with_the_score(self):
        scores = np.linspace(0, 1, 257, dtype=np.float32)[None]
        lightness = np.asarray(heatmap(grey(257, 1), scores).convert("L")).astype(int)[0]
        assert (np.diff(lightness) >= 0).all()
        assert lightness[-1] - lightness[0] > 120

    def test_a_coarse_grid_is_spread_over_the_image(self):
        scores = np.zeros((3, 5), dtype=np.float32)
        scores[1, 3] = 1
        image = heatmap(grey(500, 300, level=0), scores)
        assert image.size == (500, 300)
        brightest = np.asarray(image.convert("L")).argmax()
        row, column = divmod(int(brightest), 500)
        assert abs(row - 150) <= 1
        assert abs(column - 350) <= 1

    def test_the_image_shows_through(self):
        scores = np.zeros((2, 2), dtype=np.float32)
        assert heatmap(grey(2, 2, level=200), scores).getpixel((0, 0))[0] == round(0.35 * 200)


def test_classes_are_drawn_in_colours_and_opacities_of_their_own():
    labels = np.zeros((23, 31), np.uint16)
    labels[:, 10:20], labels[:, 20:] = 1, 2
    image = Image.new("RGB", (31, 23), (100, 0, 0))
    colours = np.array([[9, 9, 9], [0, 200, 0], [0, 0, 200]], np.uint8)
    drawn = np.asarray(draw.painted(image, labels, 2, colours, np.array([1.0, 0.25, 0.0])))
    assert drawn[11, 5].tolist() == [100, 0, 0]
    assert drawn[11, 15].tolist() == [75, 50, 0]
    assert drawn[11, 10].tolist() == drawn[11, 19].tolist() == [0, 200, 0]  # outlines
    assert (drawn[:, 20:] == [100, 0, 0]).all()
