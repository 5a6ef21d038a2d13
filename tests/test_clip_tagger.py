"""Zero-shot image classification as a tagger: what it keeps, and which models it refuses."""

import json
import math
import re
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from goca import GocaError, Segmenter
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.runner import evaluate
from goca.imaging import images
from goca.tagging import BatchTagger, tagger_named
from goca.tagging.clip import CLIPTagger
from goca.testing.tiny import tokenizers
from goca.text.nouns import Category

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CATEGORIES = (
    Category("cat", ("kitty", "black_cat")),
    Category("Grass"),
    Category("house"),
    Category("sky", ("cloud",)),
)
SENTENCES = {
    "cat": ["a photo of a cat", "a photo of a kitty", "a photo of a black cat"],
    "Grass": ["a photo of a grass"],
    "house": ["a photo of a house"],
    "sky": ["a photo of a sky", "a photo of a cloud"],
}
NEUTRAL = ["a photo", "an image", "a photo of something else"]


def saved(model: Any, processor: Any, path: Path) -> Path:
    with torch.no_grad():
        for weight in model.parameters():  # of small random weights every image looks the same
            weight.mul_(9)
        model.logit_scale.fill_(2.0)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-3.0)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


def tiny_clip(path: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = tokenizers.clip()
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 31}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    vision = {**SMALL, "image_size": 28, "patch_size": 14}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    side = {"height": 28, "width": 28}
    processor = CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side), tokenizer)
    return saved(model, processor, path)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As SigLIP 2 is saved: a SigLIP with the tokenizer of Gemma."""
    from transformers import SiglipConfig, SiglipModel, SiglipProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    torch.manual_seed(1)
    tokenizer = tokenizers.gemma()
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 23, "projection_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": 28, "patch_size": 14}))
    processor = SiglipProcessor(SiglipImageProcessorPil(size={"height": 28, "width": 28}), tokenizer)
    return saved(model, processor, tmp_path_factory.mktemp("models") / "siglip")


def photos(tmp_path: Path, image: Any, count: int = 3) -> list[Any]:
    samples = []
    for seed in range(count):
        path = tmp_path / f"{seed}.png"
        image(40 + seed, 37, seed).save(path)
        samples.append(SimpleNamespace(id=f"p{seed}", image=path))
    return samples


def candidates(background: bool = True) -> Any:
    names = tuple(category.name for category in CATEGORIES)
    return SimpleNamespace(name="toy", class_names=names, categories=CATEGORIES, background=background)


def by_hand(folder: Path, image: Image.Image) -> dict[str, float]:
    """The probability of each class, from the logits that the model itself computes of one sentence at a time."""
    from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

    model = AutoModelForZeroShotImageClassification.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    is_sigmoid = model.config.model_type == "siglip"
    # SigLIP's texts all have the length of its training.
    options = {"padding": "max_length", "max_length": 23} if is_sigmoid else {}

    def logit(sentence: str) -> float:
        with torch.no_grad():
            inputs = processor(text=[sentence], images=[image], return_tensors="pt", **options)
            return float(model(**inputs).logits_per_image)

    out = {}
    for name, sentences in SENTENCES.items():
        best = max(map(logit, sentences))
        if is_sigmoid:
            out[name] = 1 / (1 + math.exp(-best))
        else:
            neutral = max(map(logit, NEUTRAL))
            out[name] = math.exp(best) / (math.exp(best) + math.exp(neutral))
    return out


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_rule_by_hand(kind: str, request: pytest.FixtureRequest, tmp_path: Path, image: Any) -> None:
    folder = request.getfixturevalue(kind)
    tagger = tagger_named(f"clip:{folder}", batch=2)
    assert isinstance(tagger, CLIPTagger)
    assert isinstance(tagger, BatchTagger)
    samples = photos(tmp_path, image)
    loaded = [images.load(sample.image) for sample in samples]
    expected = [by_hand(folder, each) for each in loaded]
    rows = tagger.probabilities(loaded, CATEGORIES)
    for row, probabilities in zip(rows.tolist(), expected, strict=True):
        assert row == pytest.approx(list(probabilities.values()), abs=1e-4)
    # Between the second and the third class of the first image.
    _, second, third, _ = sorted(expected[0].values(), reverse=True)
    for field in ("threshold", "sigmoid_threshold"):
        setattr(tagger, field, (second + third) / 2)
    tagger.prepare(samples, candidates())
    for sample, probabilities in zip(samples, expected, strict=True):
        kept = [name.lower() for name, value in probabilities.items() if value >= (second + third) / 2]
        assert tagger.tag(sample, candidates()).lower() == ", ".join(kept)


def test_without_a_background_the_likeliest_class_is_kept(clip: Path, tmp_path: Path, image: Any) -> None:
    (sample,) = photos(tmp_path, image, 1)
    tagger = CLIPTagger(str(clip), threshold=1.0)
    assert tagger.tag(sample, candidates()) == ""
    expected = by_hand(clip, images.load(sample.image))
    assert tagger.tag(sample, candidates(background=False)) == max(expected, key=lambda name: expected[name])


def test_it_chooses_among_the_classes_of_a_user_and_of_a_data_set(clip: Path, bundled: Segmenter, image: Any) -> None:
    names = ["cat", "dog", "grass", "sky"]
    tagger = CLIPTagger(str(clip))
    (probabilities,) = tagger.probabilities([image()], [Category(name) for name in names]).tolist()
    expected = [name for name, value in zip(names, probabilities, strict=True) if value >= tagger.threshold]
    assert 0 < len(expected) < len(names)
    result = bundled(image(), names, tagger=f"clip:{clip}")
    assert result.to_json()["kept"] == expected
    assert {names[label - 1] for label in np.unique(result.labels) if label} <= set(expected)
    report = evaluate(EvaluationConfig(dataset="scenes", limit=2, tagger=f"clip:{clip}")).report
    assert report.protocol.tags == tagger.name
    assert not report.left_out
    # Scenes have no background.
    assert all(record.classes for record in report.images)


def test_an_image_that_cannot_be_read_fails_alone(clip: Path, tmp_path: Path, image: Any) -> None:
    samples = photos(tmp_path, image)
    samples[1].image.write_text("broken")
    tagger = CLIPTagger(str(clip))
    tagger.prepare(samples, candidates())
    with pytest.raises(GocaError, match=r"1\.png"):
        tagger.tag(samples[1], candidates())
    assert isinstance(tagger.tag(samples[2], candidates()), str)


def test_a_folder_is_named_with_a_fingerprint(clip: Path) -> None:
    assert re.fullmatch(r"clip clip \([0-9a-f]{8}\)", CLIPTagger(str(clip)).name)
    assert CLIPTagger("someone/clip").name == "clip someone/clip"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("clip:", "no model is named"),
        ("clip:nowhere", 'no model "nowhere": give a folder, or a Hub id'),
        ("clip:./nowhere/model", "give a folder, or a Hub id"),
    ],
)
def test_what_is_no_model_is_refused_at_once(spec: str, reason: str) -> None:
    with pytest.raises(GocaError, match=reason):
        tagger_named(spec)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", {"model_type": "llava"}, "cannot load"),
        ("config.json", {"auto_map": {"AutoModel": "model.Mine"}, "model_type": "mine"}, "cannot load"),
        ("config.json", {"transformers_weights": "../model.safetensors"}, "only a safetensors file beside it"),
        ("config.json", {"projection_dim": 10**12}, "projection_dim = 1000000000000"),
        ("adapter_config.json", {"base_model_name_or_path": "someone/else"}, "would load another model"),
    ],
)
def test_a_folder_that_leads_elsewhere(
    file: str, content: Any, reason: str, clip: Path, tmp_path: Path, image: Any
) -> None:
    broken = Path(copytree(clip, tmp_path / "model"))
    (broken / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    path = broken / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **content}))
    (sample,) = photos(tmp_path, image, 1)
    with pytest.raises(GocaError, match=reason):
        CLIPTagger(str(broken)).tag(sample, candidates())
    assert not (tmp_path / "ran").exists()


def test_a_model_that_lacks_a_tensor(clip: Path, tmp_path: Path, image: Any) -> None:
    broken = Path(copytree(clip, tmp_path / "model"))
    tensors = load_file(broken / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    (sample,) = photos(tmp_path, image, 1)
    with pytest.raises(GocaError, match=r"lack visual_projection\.weight"):
        CLIPTagger(str(broken)).tag(sample, candidates())
    (broken / "model.safetensors").unlink()
    with pytest.raises(GocaError, match="no weights as safetensors"):
        CLIPTagger(str(broken))
