"""Is everything there: finite weights, and text encoders that know all tokens of their tokenizers?"""

import torch
from torch import Tensor, nn

from goca.checking.subject import Subject
from goca.checking.verdict import Verdict, judged
from goca.diffusion.conditioning import tokenizers
from goca.diffusion.families import encoder_of


def weights(subject: Subject) -> Verdict:
    """No weight is NaN or infinite; a denoiser's matrices are not constant."""
    parts = {name: part for name, part in subject.pipeline.components.items() if isinstance(part, nn.Module)}
    bad, count, types = [], 0, dict[str, None]()
    for name, part in parts.items():
        for key, tensor in part.state_dict().items():
            # A quantised tensor is its library's own, and one that is offloaded is not here.
            if type(tensor) is not Tensor or not tensor.is_floating_point() or tensor.is_meta:
                continue
            count += tensor.numel()
            types[str(tensor.dtype).removeprefix("torch.")] = None
            constant = tensor.ndim > 1 and tensor.numel() > 1 and bool(tensor.amax() == tensor.amin())
            if constant or not bool(torch.isfinite(tensor).all()):
                bad.append(f"{name}.{key}")
    return judged(
        "weights",
        not bad,
        {"numbers": count, "types": ", ".join(types), "bad tensors": len(bad)},
        "0 tensors that are not finite, or constant matrices",
        "complete, and all of them finite",
        f"not finite, or a constant matrix: {', '.join(bad[:3])}; fetch the folder again, or load it in float32",
    )


def vocabularies(subject: Subject) -> Verdict:
    """Every tokenizer's numbers have a row in its text encoder's embeddings, and not many rows have no token."""
    measured: dict[str, float | str] = {}
    wrong = []
    for name in tokenizers(subject.pipeline):
        encoder, tokenizer = encoder_of(subject.pipeline, name), getattr(subject.pipeline, name)
        if not hasattr(encoder, "get_input_embeddings") or not hasattr(tokenizer, "__len__"):
            continue
        rows, tokens = len(encoder.get_input_embeddings().weight), len(tokenizer)
        measured |= {f"{name} tokens": tokens, f"{name} rows": rows}
        if not tokens <= rows <= 1.25 * tokens + 256:
            wrong.append(name)
    return judged(
        "vocabularies",
        not wrong,
        measured,
        "tokens <= rows of embeddings <= 1.25 x tokens + 256",
        "tokenizers and text encoders belong together",
        f"{', '.join(wrong)} and its text encoder are of different models: fetch both folders again",
    )
