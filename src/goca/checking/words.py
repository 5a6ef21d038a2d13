"""Are words at their token indices, and does the text encoder know them?"""

import torch
from jaxtyping import Float
from torch import Tensor

from goca.checking.subject import Subject
from goca.checking.verdict import Verdict, judged, skipped
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.conditioning import EncodedPrompt
from goca.diffusion.families.spec import TextInput
from goca.errors import GocaError
from goca.probing.passes import ROUNDING, denoiser_call, moved
from goca.text.plurals import plurals
from goca.text.tokens import Tokens

CAPTION = "cat, traffic light, grass"
EXCHANGED = "dog, traffic light, grass"
LEAST_FOUND = 0.6
"""Least share of nouns whose plural is nearest to their own singular."""

Keys = dict[str, Float[Tensor, "token channel"]]


@torch.no_grad()
def token_indices(subject: Subject) -> Verdict:
    """Negating a token's embedding changes the keys at its own index more than any others."""
    backbone, wrong, count = subject.backbone, [], 0
    prompt = backbone.session().prompt(CAPTION)
    before = _keys(subject, None)
    texts = backbone.texts(prompt)
    for tokens in {tokens.tokenizer: tokens for tokens in texts}.values():
        # The same text may enter again, from another layer of its encoder.
        starts = [other.start for other in texts if other.tokenizer == tokens.tokenizer]
        for index in _content(tokens):
            after = _keys(subject, (tokens.tokenizer, prompt.texts[tokens.tokenizer], index))
            # After the first block of joint attention, words have attended to each other.
            blocks = tuple(before) if backbone.family.joint is None else tuple(before)[:1]
            for block in blocks:
                rows = moved(before[block], after[block])
                count += 1
                if not rows or rows[0] - index not in starts:
                    wrong.append(f"{tokens.text.strip()[slice(*_local(tokens, index))]!r} in {block}: {rows[:1]}")
    return judged(
        "token indices are right",
        not wrong and count > 0,
        {"keys at another index": len(wrong), "keys asked": count},
        "0",
        "every negated embedding changed the keys at its own token index",
        f"the keys at another index changed ({', '.join(wrong[:1])}): this pipeline pads or cuts its text differently "
        "than its family; probe it, and please report it",
    )


def _content(tokens: Tokens) -> list[int]:
    """The first and the last token of the caption: cutting or padding shifts one of them."""
    content = [index for index, special in enumerate(tokens.special) if not special]
    return [content[0], content[-1]]


def _local(tokens: Tokens, index: int) -> tuple[int, int]:
    shift = len(tokens.text) - len(tokens.text.lstrip())
    start, end = tokens.offsets[index]
    return start - shift, end - shift


def _keys(subject: Subject, token: tuple[str, Tokens, int] | None) -> Keys:
    """{block: the text's keys} of a pass over a small image, in which a token may be negated."""
    backbone, keys = subject.backbone, Keys()
    cells = 4 * backbone.size_multiple // backbone.vae_scale_factor

    def sink(_: int, call: AttentionCall) -> None:
        if call.text is not None:
            keys[call.block] = call.k[:, call.text].transpose(0, 1).flatten(1)

    with (
        denoiser_call(backbone, (cells, cells), CAPTION, token=token) as (args, kwargs, _),
        backbone.attention_hook((cells, cells), sink),
    ):
        backbone.denoiser(*args, **kwargs)
    return keys


@torch.no_grad()
def exchange(subject: Subject) -> Verdict:
    """Exchanging a word changes the text encoder's states in that word's row."""
    name, session = "states change with words", subject.backbone.session()
    first, second = (session.prompt(caption) for caption in (CAPTION, EXCHANGED))
    text, tokens = subject.backbone.family.texts[0], first.texts[subject.backbone.family.texts[0].tokenizer]
    if first.shape != second.shape or tokens.special != second.texts[text.tokenizer].special:
        return skipped(name, "the two captions have different lengths, so that their states cannot be compared")
    change = (_states(first) - _states(second)).norm(dim=-1)
    rows = [
        _row(text, tokens, index, first.length)
        for index, (start, end) in enumerate(tokens.offsets)
        if not tokens.special[index] and tokens.text[start:end].strip().lower() in ("cat", "ca", "c")
    ]
    if not rows or not all(0 <= row < len(change) for row in rows):
        return skipped(name, "the tokenizer does not keep the word whole")
    most = int(change.argmax())
    # With causal attention the first change is the word's own, and later ones may be larger.
    first_changed = int((change > ROUNDING * change[most]).int().argmax())
    return judged(
        name,
        float(change[most]) > 0 and rows[0] in (first_changed, most),
        {"word's row": rows[0], "first row that changes": first_changed, "row that changes most": most},
        "changes first, or most",
        "exchanging a word changes its own state",
        "exchanging a word changes other states than its own: the tokenizer is not the text encoder's; download both "
        "folders again",
    )


def _states(prompt: EncodedPrompt) -> Float[Tensor, "token channel"]:
    """The encoded prompt, a row for each token; Krea 2 has its encoder's layers after the tokens."""
    embeddings = prompt.embeddings.float()
    if embeddings.ndim == 4 and embeddings.shape[0] == 1:
        return embeddings[0].flatten(1)
    return embeddings.reshape(-1, *embeddings.shape[-2:]).mean(0)


def _row(text: TextInput, tokens: Tokens, index: int, length: int) -> int:
    """The row of a token among the embeddings, which do not include registers that the denoiser prepends."""
    return index + (length - len(tokens.offsets) if text.right_aligned else min(0, text.start))


@torch.no_grad()
def plural(subject: Subject) -> Verdict:
    """In the text encoder a noun's plural is more similar to its singular than to other nouns."""
    nouns = [thing for thing, _ in subject.pairs]  # surroundings have no plural
    forms = [sorted(plurals(noun), key=len)[0] for noun in nouns]
    first, second = (torch.stack([_state(subject, word) for word in words]) for words in (nouns, forms))
    centre = torch.cat([first, second]).mean(0)
    alike = torch.nn.functional.normalize(second - centre) @ torch.nn.functional.normalize(first - centre).T
    share = float((alike.argmax(1) == torch.arange(len(nouns), device=alike.device)).float().mean())
    return judged(
        "the text encoder knows words",
        share >= LEAST_FOUND,
        {"plurals at their noun": share, "by chance": 1 / len(nouns)},
        f">= {LEAST_FOUND}",
        "plurals are similar to their nouns",
        "plurals are more like other nouns: the text encoder is damaged, or the tokenizer is another model's",
    )


def _state(subject: Subject, word: str) -> Float[Tensor, " channel"]:
    """The mean state of the tokens of a caption that is a single word."""
    prompt = subject.backbone.session().prompt(word)
    text = subject.backbone.family.texts[0]
    tokens = prompt.texts[text.tokenizer]
    rows = [_row(text, tokens, index, prompt.length) for index, special in enumerate(tokens.special) if not special]
    states = _states(prompt)
    if not rows or max(rows) >= len(states):
        raise GocaError(f'the encoded prompt lacks the states of "{word}": please report this model')
    return states[rows].mean(0)
