"""Is everything there: finite weights, and text encoders that know all tokens of their tokenizers?"""

import torch
from torch import Tensor, nn

from goca.checking.subject import Subject
from goca.checking.verdict import Verdict, judged
from goca.diffusion.conditioning import tokenizers
from goca.diffusion.families import encoder_of
from goca.errors import GocaError

COMPLETE = "complete"


def complete() -> Verdict:
    """The verdict of a folder that was loaded: loading refuses whatever is not complete."""
    return Verdict(
        COMPLETE,
        "passed",
        {"missing": 0, "unknown": 0, "of another shape": 0},
        "0",
        "every tensor of every part comes from its files, and every tensor of these is used",
    )


def incomplete(error: GocaError) -> Verdict:
    """The verdict of a folder that could not be loaded, and why."""
    return Verdict(COMPLETE, "failed", {}, "0", str(error))


def weights(subject: Subject) -> Verdict:
    """No weight is NaN or infinite; a warning where a matrix is constant, as those that were never filled are."""
    parts = {name: part for name, part in subject.pipeline.components.items() if isinstance(part, nn.Module)}
    bad, constant, count, types = list[str](), list[str](), 0, dict[str, None]()
    for name, part in parts.items():
        for key, tensor in part.state_dict().items():
            # A quantised tensor is its library's own, and one that is offloaded is not here.
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
        "complete, and all of them finite",
        f"not finite, or constant: {', '.join([*bad, *constant][:3])}; fetch the folder again, or load it in float32",
        otherwise="failed" if bad else "warned",
    )


def vocabularies(subject: Subject) -> Verdict:
    """Every tokenizer's numbers have a row in its text encoder's embeddings, and few rows have no token.

    There may be up to 1.25 rows a token and 256 more: some are padded.
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
        f"{', '.join(wrong)} and its text encoder are of different models: fetch both folders again",
    )
