"""What a trace keeps as one safetensors file; docs/inspecting.md describes it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from goca.errors import GocaError
from goca.plan import Plan, versions
from goca.storage.atomic import write_atomic
from goca.tracing.steps import TracedAttention

SUFFIX = ".safetensors"


def write_tensors(path: str | Path, attention: TracedAttention, plan: Plan) -> Path:
    """Write what is kept of an image. Raises GocaError if the path has another suffix or cannot be written."""
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise GocaError(f"{path} is not a name for tensors: let it end in {SUFFIX}", hint="out")
    tensors, metadata = _tensors(attention), _metadata(attention)
    beside = {f"references.{number}.": part for number, part in enumerate(attention.references)}
    if attention.negative is not None:
        beside["negative."] = attention.negative
    for prefix, part in beside.items():
        tensors |= {prefix + name: tensor for name, tensor in _tensors(part).items()}
        metadata |= {prefix + name: text for name, text in _metadata(part).items()}
    metadata["plan"] = json.dumps(plan.to_json())
    metadata["versions"] = json.dumps(dict(versions()))
    write_atomic({path: save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)})
    return path


def _tensors(attention: TracedAttention) -> dict[str, Tensor]:
    calls = attention.steps
    tensors = {
        "maps": attention.maps().float().cpu(),
        "layer_weights": torch.tensor([[call.layers[block] for block in calls[0].layers] for call in calls]),
    }
    for block in calls[0].heads:
        tensors[f"head_weights.{block}"] = torch.tensor([call.heads[block] for call in calls])
    if attention.calls:
        tensors["calls"] = torch.stack(attention.calls)
    if (layer_maps := attention.layer_maps) is not None:
        for block in layer_maps.grids:
            tensors[f"layers.{block}"] = layer_maps.layer(block)
            if layer_maps.each_head:
                tensors[f"heads.{block}"] = layer_maps.heads(block)
    return tensors


def _metadata(attention: TracedAttention) -> dict[str, str]:
    values = {
        "token_indices": attention.token_indices,
        "tokens": [vars(token) for token in attention.tokens],
        "words": {str(word): indices for word, indices in attention.word_indices.items()},
        "layers": list(attention.steps[0].layers),
        "steps": [{"step": call.step, "timestep": call.timestep} for call in attention.steps],
        "size": attention.size,
    }
    return {"prompt": attention.prompt.prompt, **{name: json.dumps(value) for name, value in values.items()}}
