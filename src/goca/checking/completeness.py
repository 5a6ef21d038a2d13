"""Is a model complete: finite weights, and text encoders with all tokens of their tokenizers?"""

import torch
from torch import Tensor, nn

from goca.checking.subject import Subject
from goca.checking.verdict import Verdict, judged
from goca.diffusion.conditioning import tokenizers
from goca.diffusion.families import encoder_of
from goca.errors import GocaError

COMPLETE = "complete"


def complete() -> Verdict:
    """The verdict on a folder that was loaded: loading refuses anything incomplete."""
    return Verdict(
        COMPLETE,
        "passed",
        {"missing": 0, "unknown": 0, "of another shape": 0},
        "0",
        "every tensor of every part comes from its files, and all their tensors are used",
    )


def incomplete(error: GocaError) -> Verdict:
    """The verdict on a folder that could not be loaded, with the reason."""
    return Verdict(COMPLETE, "failed", {}, "0", str(error))


def weights(subject: Subject) -> Verdict:
    """No weight is NaN or infinite; warns of constant matrices, which may never have been filled."""
    parts = {name: part for name, part in subject.pipeline.components.items() if isinstance(part, nn.Module)}
    bad, constant, count, types = list[str](), list[str](), 0, dict[str, None]()
    for name, part in parts.items():
        for key, tensor in part.state_dict().items():
            # A quantised tensor has its library's own format, and an offloaded one is not in memory.
            if type(tensor) is not Tensor or not tensor.is_floating_point() or tensor.is_meta:
                continue
            count += tensor.numel()
            types[str(tensor.dtype).removeprefix("torch.")] = None
            if not bool(torch.isfinite(tensor).all()):
                bad.append(f"{name}.{key}")
            elif sum(side > 1 for side in tensor.shape) > 1 and bool(tensor.amax() == tensor.amin()):
                constant.append(f"{name}.{key}")
    return judged(
        "weights",
        not bad and not constant,
        {"bad tensors": len(bad), "constant": len(constant), "numbers": count, "types": ", ".join(types)},
        "0",
        "complete, and all finite",
        f"not finite, or constant: {', '.join([*bad, *constant][:3])}; fetch the folder again, or load it in float32",
        otherwise="failed" if bad else "warned",
    )


def vocabularies(subject: Subject) -> Verdict:
    """Every token id has a row in its text encoder's embeddings, and few rows have no token.

    Some are padded, so up to 1.25 rows per token plus 256 are accepted.
    """
    measured: dict[str, float | int | str] = {"misfits": 0}
    wrong = []
    for name in tokenizers(subject.pipeline):
        encoder, tokenizer = encoder_of(subject.pipeline, name), getattr(subject.pipeline, name)
        if not hasattr(encoder, "get_input_embeddings") or not hasattr(tokenizer, "__len__"):
            continue
        rows, tokens = len(encoder.get_input_embeddings().weight), len(tokenizer)
        measured |= {f"{name} tokens": tokens, f"{name} rows": rows}
        if not tokens <= rows <= 1.25 * tokens + 256:
            wrong.append(name)
    measured["misfits"] = len(wrong)
    return judged(
        "vocabularies",
        not wrong,
        measured,
        "0",
        "tokenizers and text encoders belong together",
        f"{', '.join(wrong)} and its text encoder belong to different models: download both folders again",
    )
