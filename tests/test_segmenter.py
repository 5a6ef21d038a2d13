"""The library end to end: images and names in, labelled masks out."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from yardsticks import newcomers

import goca
from goca import FTTM, GOCA, VANILLA, GocaError, SegmentationRequest, Segmenter
from goca.maths.background import Background, constant, maximum, none, offset
from goca.maths.resize import resize
from goca.plan import Options

Make = Callable[..., Image.Image]


def test_a_non_square_image_in_a_batch_of_two(pipeline: Any, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(pipeline, GOCA, size=64, batch=2)
    calls: list[int] = []
    # The first layer: the pass ends with the last attention, before the denoiser does.
    pipeline.unet.conv_in.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    results = segmenter([image(160, 96, 0), image(160, 96, 1)], classes=["cat", "grass"], background_classes=["sky"])
    assert calls == [2]
    for result in results:
        assert result.labels.shape == (96, 160)
        assert result.labels.dtype == np.uint16
        assert set(np.unique(result.labels)) <= {0, 1, 2}
        height, width = result.scores.grid.shape[1:]
        assert height * width == pytest.approx(64 * 64, rel=0.05)
        assert width / height == pytest.approx(160 / 96, rel=0.1)
        assert result.scores.grid.dtype == np.float32
        assert result.scores.grid.min() >= 0
        assert result.scores.grid.max() <= 1
        assert result.scores.at((96, 160)).shape == (2, 96, 160)


def test_other_backgrounds_need_no_other_pass(bundled: Segmenter, image: Make) -> None:
    result = bundled(image(), ["cat", "grass"], background_classes=["sky"])
    others = [
        bundled(image(), ["cat", "grass"], background_classes=["sky"], background=background)
        for background in (0.6, 0.9, None)
    ]
    relabelled = result.relabelled(
        [Background(offset, 0.0), Background(constant, 0.6), Background(constant, 0.9), Background(none)]
    )
    for labels, expected in zip(relabelled, [result, *others], strict=True):
        assert labels.dtype == np.uint16
        assert np.array_equal(labels, expected.labels)
    assert len({segmentation.labels.tobytes() for segmentation in (result, *others)}) == 4


def test_every_recipe_on_every_kind_has_scores_of_its_own(pipeline: Any, image: Make) -> None:
    grids: dict[str, np.ndarray] = {}
    for name in ("goca", "vanilla", "goca-balanced", "goca-compound", "daam"):
        segmenter = Segmenter.from_pipeline(pipeline, recipe=name, size=64)
        result = segmenter(image(), classes=["cat", "grass"], background_classes=())
        assert result.plan.recipe == name
        grids[name] = result.scores.grid
        assert np.isfinite(grids[name]).all()
        assert grids[name].min() >= 0
        assert grids[name].max() == pytest.approx(1)
    for first, second in combinations(grids, 2):
        assert np.abs(grids[first] - grids[second]).max() > 1e-3, (first, second)


def test_only_the_layers_asked_for_take_part(sd15: Any, image: Make) -> None:
    def grid(*cross: str) -> np.ndarray:
        segmenter = Segmenter.from_pipeline(sd15, recipe=replace(GOCA, cross=cross), size=64)
        return segmenter(image(), classes=["cat", "dog"]).scores.grid

    every = Segmenter.from_pipeline(sd15).backbone.blocks
    assert np.array_equal(grid(), grid(*every))
    # The reference block may be left out of the map and still serve as the reference.
    alone = [grid(block) for block in every[:2]]
    assert np.abs(alone[0] - alone[1]).max() > 0.1


def test_hand_picked_layers_where_the_model_has_them(sd15: Any, image: Make) -> None:
    width = sd15.text_encoder.config.hidden_size
    thin = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,) * 4, norm_num_groups=4, attention_head_dim=2, cross_attention_dim=width
    )
    pipeline = type(sd15)(**{**sd15.components, "unet": thin.eval()}, requires_safety_checker=False)
    result = Segmenter.from_pipeline(pipeline, recipe=FTTM, size=64)(image(), classes=["cat", "dog"])
    assert np.isfinite(result.scores.grid).all()
    assert result.plan.recipe == "fttm"


def test_an_image_s_result_does_not_depend_on_its_company(bundled: Segmenter, image: Make) -> None:
    shapes = [(64, 64), (96, 64), (64, 64), (64, 200)]
    images = [image(*shape, seed) for seed, shape in enumerate(shapes)]
    together = bundled(images, classes=["cat", "grass"])
    for shown, result in zip(images, together, strict=True):
        alone = bundled(shown, classes=["cat", "grass"])
        assert (alone.labels != result.labels).mean() < 0.01
        np.testing.assert_allclose(alone.scores.grid, result.scores.grid, atol=1e-3)


def test_the_same_seed_gives_the_same_result_and_another_another(sd15: Any, image: Make) -> None:
    first, again, other = (
        Segmenter.from_pipeline(sd15, GOCA, size=64, seed=seed)(image(), classes=["cat", "dog"]).scores.grid
        for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_uncertainty_is_the_standard_deviation_over_passes(sd15: Any, image: Make) -> None:
    def segmented(**options: Any) -> goca.Segmentation:
        return Segmenter.from_pipeline(sd15, GOCA, size=64, **options)(image(96, 64), classes=["cat", "dog"])

    result = segmented(seeds=2)
    apart = np.abs(segmented(seed=0).scores.grid - segmented(seed=1).scores.grid) / 2
    np.testing.assert_allclose(result.scores.ensemble_std, apart, atol=1e-6)
    assert result.uncertainty is not None
    assert result.uncertainty.shape == result.labels.shape
    row, column = 5, 7
    size = result.labels.shape
    label = int(result.labels[row, column])
    best = label - 1 if label else result.scores.at(size)[:, row, column].argmax()
    wide = resize(torch.from_numpy(result.scores.ensemble_std), size)
    assert result.uncertainty[row, column] == pytest.approx(float(wide[best, row, column]))
    assert result.to_json()["uncertainty"] == pytest.approx(float(result.uncertainty.mean()))


def test_a_single_pass_has_no_uncertainty(sd15: Any, image: Make) -> None:
    result = Segmenter.from_pipeline(sd15, GOCA, size=64)(image(), classes=["cat", "dog"])
    assert result.uncertainty is None
    assert result.scores.ensemble_std is None
    assert "uncertainty" not in result.to_json()


def test_passes_are_averaged(sd15: Any, image: Make) -> None:
    def grid(**options: Any) -> np.ndarray:
        segmenter = Segmenter.from_pipeline(sd15, GOCA, size=64, **options)
        return segmenter(image(), classes=["cat", "dog"]).scores.grid

    seeds = (grid(seed=0) + grid(seed=1)) / 2
    np.testing.assert_allclose(grid(seeds=2), seeds, atol=1e-6)
    timesteps = (grid(timestep=50) + grid(timestep=300)) / 2
    np.testing.assert_allclose(grid(timestep=(50, 300)), timesteps, atol=1e-6)
    mirrored = Segmenter.from_pipeline(sd15, GOCA, size=64)(
        image().transpose(Image.Transpose.FLIP_LEFT_RIGHT), classes=["cat", "dog"]
    )
    flipped = (grid() + mirrored.scores.grid[..., ::-1]) / 2
    np.testing.assert_allclose(grid(flip=True), flipped, atol=1e-4)


@pytest.mark.parametrize("classes", [[" cat ", "water\n"], {" cat ": ["kitty "], "water\n": []}])
def test_names_lose_the_spaces_around_them(classes: Any, bundled: Segmenter, image: Make) -> None:
    result = bundled(image(), classes)
    assert result.classes == ("cat", "water")
    np.testing.assert_array_equal(result["cat"], bundled(image(), ["cat", "water"])["cat"])


def test_one_noun_in_a_caption_of_the_user_s_takes_no_share(sd15: Any, image: Make) -> None:
    result = Segmenter.from_pipeline(sd15, GOCA, size=64)(image(), classes=["cat"], caption="a photo of a cat")
    assert result.plan.captions == ("a photo of a cat",)
    assert "its share of attention is not taken" in result.plan.notes[0]
    assert result.scores.grid.max() == 1


def test_background_rules(bundled: Segmenter, image: Make) -> None:
    def ask(background: Any, background_classes: tuple[str, ...] = ()) -> goca.Segmentation:
        return bundled(image(), classes=["cat", "dog"], background_classes=background_classes, background=background)

    assert ask("auto").plan.to_json()["background"] == {"rule": "constant", "threshold": 0.5}
    assert ask("auto", ("grass",)).plan.to_json()["background"] == {"rule": "offset", "threshold": 0.0}
    assert (ask(None).labels > 0).all()
    assert np.array_equal(ask("none").labels, ask(None).labels)
    # No score exceeds 1, and a tie goes to the background.
    assert (ask(1.0).labels == 0).all()
    for wrong in (-0.1, 7.0, float("nan"), "most"):
        with pytest.raises(GocaError, match="from 0 to 1"):
            ask(wrong)
    for nothing in (None, "none"):
        with pytest.raises(GocaError, match="name another class"):
            bundled(image(), classes=["cat"], background=nothing)
    low, high = ask(0.3), ask(0.7)
    assert ((high.labels > 0) <= (low.labels > 0)).all()
    scores = low.scores.at((96, 160))
    assert ((low.labels == 0) == (scores.max(0) <= 0.3)).mean() > 0.999


def test_labels_are_the_argmax_of_the_scores_against_the_support(bundled: Segmenter, image: Make) -> None:
    result = bundled(image(), classes=["cat", "grass"], background_classes=["sky", "road"])
    assert result.scores.background is not None
    whole = np.concatenate([result.scores.background[None], result.scores.grid])
    upsampled = torch.nn.functional.interpolate(torch.from_numpy(whole)[None], (96, 160), mode="bilinear")[0]
    assert (upsampled.argmax(0).numpy() == result.labels).mean() > 0.999


def test_many_classes_are_spread_over_prompts(sd15: Any, image: Make) -> None:
    names = [f"thing number {index}" for index in range(20)]
    result = Segmenter.from_pipeline(sd15, GOCA, size=64)(image(), classes=names, background_classes=["sky"])
    assert len(result.plan.captions) > 1
    assert all(caption.endswith("sky") for caption in result.plan.captions)
    assert any("spread over" in note for note in result.plan.notes)
    assert result.scores.grid.shape[0] == 20
    assert result.classes == tuple(names)


def test_long_images_are_seen_through_windows(bundled: Segmenter, image: Make) -> None:
    result = bundled(image(400, 40), classes=["cat", "grass"])
    assert result.labels.shape == (40, 400)
    assert any("windows" in note for note in result.plan.notes)
    assert result.scores.grid.shape[2] / result.scores.grid.shape[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(("width", "height"), [(160, 96), (23, 131)])
def test_a_square_is_squashed_and_labels_are_stretched_back(sd15: Any, image: Make, width: int, height: int) -> None:
    segmenter = Segmenter.from_pipeline(sd15, replace(GOCA, square=True), size=64)
    photo = image(width, height)
    result = segmenter(photo, ["cat", "grass"], background=None)
    squashed = segmenter(photo.resize((64, 64), Image.Resampling.BICUBIC), ["cat", "grass"], background=None)
    assert result.scores.grid.shape == (2, 64, 64)
    assert np.array_equal(result.scores.grid, squashed.scores.grid)
    assert result.labels.shape == (height, width)
    assert not any("window" in note for note in result.plan.notes)
    wide = torch.nn.functional.interpolate(torch.from_numpy(result.scores.grid)[None], (height, width), mode="bilinear")
    assert (result.labels == wide[0].argmax(0).numpy() + 1).mean() > 0.999
    # In its own aspect it is seen otherwise.
    kept = Segmenter.from_pipeline(sd15, GOCA, size=64)(photo, ["cat", "grass"], background=None)
    assert kept.scores.grid.shape != result.scores.grid.shape


def test_windows_are_squares_whatever_the_recipe(sd15: Any, image: Make) -> None:
    photo = image(160, 96)
    squares, kept = (
        Segmenter.from_pipeline(sd15, replace(GOCA, square=square), size=64, window=True)(photo, ["cat", "grass"])
        for square in (True, False)
    )
    assert np.array_equal(squares.scores.grid, kept.scores.grid)
    assert any("windows" in note for note in squares.plan.notes)


def test_windows_on_demand(bundled: Segmenter, image: Make) -> None:
    windowed = Segmenter(bundled.backbone, GOCA, Options(window=True), batch=3)
    result = windowed(image(200, 150), classes=["cat", "grass"], background_classes=["sky"])
    assert result.labels.shape == (150, 200)
    assert result.scores.grid.shape == (2, 75, 100)
    assert result.scores.grid.max() <= 1


def test_a_cell_for_each_token_in_windows_squares_and_images_of_any_aspect(bundled: Segmenter, image: Make) -> None:
    # The finest attention of this model has a token for 4 x 4 px of what it sees.
    cells = replace(GOCA, grid="tokens")
    grids = {
        name: Segmenter(bundled.backbone, recipe, Options(**options), batch=3)(image(*size), ["cat", "grass"])
        for name, recipe, options, size in (
            ("seen at 48 x 80 px", cells, {}, (160, 96)),
            ("seen at 96 x 168 px", cells, {"size": 128}, (160, 96)),
            ("squashed to 64 x 64 px", replace(cells, square=True), {}, (160, 96)),
            ("windows of 64 px over 150 x 200 px", cells, {"window": True}, (200, 150)),
        )
    }
    assert {name: result.scores.grid.shape[1:] for name, result in grids.items()} == {
        "seen at 48 x 80 px": (12, 20),
        "seen at 96 x 168 px": (24, 42),
        "squashed to 64 x 64 px": (16, 16),
        "windows of 64 px over 150 x 200 px": (38, 50),
    }


def test_a_tuple_of_images_is_a_list(bundled: Segmenter, image: Callable[..., Image.Image]) -> None:
    pixels = np.asarray(image())
    alone = bundled(image(), ["cat", "grass"])
    results = bundled((pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1)), ["cat", "grass"])
    assert isinstance(results, list)
    assert [np.array_equal(result.labels, alone.labels) for result in results] == [True, True]


def growth(unet: Any, work: Callable[[], Any]) -> tuple[list[int], int]:
    """How many bytes of tensors more there are at each pass of a UNet than at the one before; cells of its latents."""
    seen: list[int] = []
    cells: list[int] = []

    def look(module: Any, args: Any) -> None:
        seen.append(held())
        cells.append(args[0].shape[-2] * args[0].shape[-1])

    handle = unet.conv_in.register_forward_pre_hook(look)
    try:
        with newcomers() as held:
            work()
    finally:
        handle.remove()
    return [later - earlier for earlier, later in pairwise(seen)], cells[0]


def test_windows_that_wait_for_each_other_keep_no_matrix_of_their_cells(sd15: Any, image: Make) -> None:
    windowed = Segmenter.from_pipeline(sd15, GOCA, size=96, window=True, batch=1)
    more, cells = growth(sd15.unet, lambda: windowed(image(), classes=["cat", "grass"], background_classes=["sky"]))
    assert more
    assert max(more) < 4 * cells**2


def test_requests_may_differ_within_a_batch(bundled: Segmenter, image: Make) -> None:
    requests = [
        SegmentationRequest(image(64, 64), ["cat", "sky"]),
        SegmentationRequest(image(64, 64, 1), ["dog", "bus", "road"]),
    ]
    results = list(bundled.stream(requests))
    assert [request for request, _ in results] == requests
    assert [result.classes for _, result in results] == [("cat", "sky"), ("dog", "bus", "road")]


def test_a_bad_request_does_not_stop_the_stream(bundled: Segmenter, image: Make) -> None:
    requests = [SegmentationRequest(shown, ["cat", "sky"]) for shown in (image(), "nowhere.png", image(seed=1))]
    first, error, last = (outcome for _, outcome in bundled.stream(requests))
    assert isinstance(first, goca.Segmentation)
    assert isinstance(error, GocaError)
    assert str(error) == "no such file: nowhere.png"
    assert isinstance(last, goca.Segmentation)


def test_the_result_tells_its_story(bundled: Segmenter, image: Make) -> None:
    result = bundled(np.asarray(image()), classes={"cat": [], "ground": ["grass", "sand"]}, background=None)
    assert result.classes == ("cat", "ground")
    assert result.plan.captions == ("cat, grass, sand",)
    assert sum(presence.share for presence in result.present.values()) == pytest.approx(1)
    assert np.array_equal(result.mask("ground"), result.labels == 2)
    assert np.array_equal(result["ground"], result.mask("ground"))
    with pytest.raises(GocaError, match="cat, ground"):
        result["sand"]
    assert result.heatmap("cat").size == result.image.size
    assert {shape["label"] for shape in result.to_labelme("photo.jpg")["shapes"]} == {"cat", "ground"}
    areas = {entry["category_id"]: entry["area"] for entry in result.to_coco(7, "photo.jpg")["annotations"]}
    assert areas == {index: int((result.labels == index).sum()) for index in (1, 2)}
    facts = result.to_json()
    assert facts["plan"]["seeds"] == [0]
    assert facts["plan"]["versions"]["goca"] == goca.__version__
    assert [entry["name"] for entry in facts["classes"]] == ["cat", "ground"]


def test_a_result_says_what_the_user_chose(bundled: Segmenter, image: Make) -> None:
    def by_user(**request: Any) -> set[str]:
        origin = bundled(image(), classes=["cat", "grass"], **request).plan.origin
        return {name for name, source in origin.items() if source == "user"}

    assert by_user() == set()
    assert by_user(background=0.5) == by_user(background=None) == {"background"}


def test_a_result_is_pickled_whole(bundled: Segmenter, image: Make) -> None:
    result = bundled(image(), classes=["cat", "grass"], background_classes=["sky"])
    copy = pickle.loads(pickle.dumps(result))
    assert copy.plan == result.plan
    assert copy.image.tobytes() == result.image.tobytes()
    assert np.array_equal(copy["cat"], result["cat"])
    assert np.array_equal(copy.scores.grid, result.scores.grid)


def test_results_and_segmenters_are_shown_in_a_line(bundled: Segmenter, image: Make) -> None:
    assert repr(bundled) == "Segmenter(Plan(goca on bundled, 64 px, timestep (300,)), float32 on cpu, batch 4)"
    result = bundled(image(160, 96), classes=["cat", "grass"], background=1.0)
    assert repr(result) == "Segmentation(160 x 96 px: cat 0%, grass 0%; Plan(goca on bundled, 64 px, timestep (300,)))"


def test_from_pretrained_reads_a_saved_folder(pipeline: Any, image: Make, tmp_path: Any) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    loaded = Segmenter.from_pretrained(str(tmp_path / "model"), GOCA, size=64)
    wrapped = Segmenter.from_pipeline(pipeline, GOCA, size=64)
    classes = ["cat", "grass"]
    # Loaded weights lie elsewhere in memory, which moves the last bit of a product, and min-max enlarges it.
    np.testing.assert_allclose(loaded(image(), classes).scores.grid, wrapped(image(), classes).scores.grid, atol=0.02)
    assert loaded.plan.model == str(tmp_path / "model")


def test_what_a_recipe_asks_for_and_a_model_lacks_is_named(bundled: Segmenter) -> None:
    recipe = replace(GOCA, reference="up_blocks.9.attentions.0.transformer_blocks.0")
    with pytest.raises(GocaError, match=r"custom.*up_blocks\.9"):
        Segmenter(bundled.backbone, recipe, Options(), 1)


def test_nan_weights_are_an_error(sd15: Any, image: Make) -> None:
    with torch.no_grad():
        sd15.unet.conv_in.weight.fill_(torch.nan)
    with pytest.raises(GocaError, match="not finite"):
        Segmenter.from_pipeline(sd15, GOCA, size=64)(image(), classes=["cat", "grass"])


def test_a_new_method_is_a_value(sd15: Any, image: Make) -> None:
    def loudest(parts: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return parts.abs().sum(-1)

    recipe = replace(GOCA, heads=loudest, order=0, background=Background(maximum, 0.25))
    result = Segmenter.from_pipeline(sd15, recipe=recipe, size=64)(image(), classes=["cat", "grass"])
    plan = result.plan.to_json()
    assert (plan["recipe"], plan["heads"], plan["order"]) == ("custom", "loudest", 0)
    assert plan["origin"]["order"] == "recipe"
    assert plan["background"] == {"rule": "max", "threshold": 0.25}


def test_a_count_below_1_is_an_error(sd15: Any) -> None:
    for setting in ({"seeds": 0}, {"batch": 0}):
        with pytest.raises(GocaError, match="1 or more"):
            Segmenter.from_pipeline(sd15, GOCA, **setting)


def test_a_recipe_may_be_named(sd15: Any) -> None:
    assert Segmenter.from_pipeline(sd15, recipe="vanilla").plan == Segmenter.from_pipeline(sd15, recipe=VANILLA).plan
    with pytest.raises(GocaError, match="goca-balanced"):
        Segmenter.from_pipeline(sd15, recipe="best")


def test_autocast_of_the_caller_s_and_default_types_do_not_matter(sd15: Any, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(sd15, GOCA, size=64)
    plain = segmenter(image(), classes=["cat", "dog"]).scores.grid
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = segmenter(image(), classes=["cat", "dog"]).scores.grid
    np.testing.assert_allclose(cast, plain, atol=0.05)


def test_running_out_of_memory_names_the_settings(sd15: Any, image: Make) -> None:
    def exhausted(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    sd15.unet.register_forward_pre_hook(exhausted)
    with pytest.raises(GocaError, match="batch 4 and size 64"):
        Segmenter.from_pipeline(sd15, GOCA, size=64)(image(), classes=["cat", "dog"])


def test_memory_does_not_grow_with_the_number_of_prompts(sd15: Any, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(sd15, GOCA, size=64, batch=1)
    names = [f"thing {index}" for index in range(30)]
    more, cells = growth(sd15.unet, lambda: segmenter(image(), classes=names))
    assert len(more) >= 2
    # What a prompt says of its classes is kept, and no matrix of how cells look at each other.
    assert max(more) < 4 * cells**2


def test_what_a_user_loads_between_two_calls_counts(sd15: Any, image: Make) -> None:
    """As a LoRA of the text encoder does: no encoded caption outlives a call."""
    segmenter = Segmenter.from_pipeline(sd15, GOCA, size=64)
    before = segmenter(image(), classes=["cat", "dog"]).scores.grid
    with torch.no_grad():
        for weight in sd15.text_encoder.parameters():
            weight *= 1.5
    changed = segmenter(image(), classes=["cat", "dog"]).scores.grid
    assert not np.array_equal(before, changed)
    assert np.array_equal(
        changed, Segmenter.from_pipeline(sd15, GOCA, size=64)(image(), classes=["cat", "dog"]).scores.grid
    )


def test_a_check_reads_no_image_and_encodes_for_the_stream(sd15: Any, image: Make) -> None:
    segmenter, encodings = Segmenter.from_pipeline(sd15, GOCA, size=64), list[int]()
    sd15.text_encoder.register_forward_hook(lambda *_: encodings.append(1))
    session = segmenter.check(SegmentationRequest("", ["cat", "dog"]))
    encoded = len(encodings)
    ((_, result),) = segmenter.stream([SegmentationRequest(image(), ["cat", "dog"])], session)
    assert isinstance(result, goca.Segmentation)
    assert len(encodings) == encoded
    with pytest.raises(GocaError, match="named twice"):
        segmenter.check(SegmentationRequest("", ["cat", "cat"]))


def test_images_of_different_shapes_with_different_numbers_of_windows(bundled: Segmenter, image: Make) -> None:
    windowed = Segmenter(bundled.backbone, GOCA, options=Options(window=True), batch=3)
    shapes = [(64, 64), (100, 64), (64, 110)]
    results = windowed([image(*shape) for shape in shapes], classes=["cat", "grass"])
    assert [result.labels.shape for result in results] == [(height, width) for width, height in shapes]
    assert [any("windows" in note for note in result.plan.notes) for result in results] == [False, True, True]
