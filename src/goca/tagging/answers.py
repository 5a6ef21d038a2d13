"""Captions, lists of nouns such as "(person, clothes), grass": reading, writing, and extracting them from answers."""

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from unicodedata import normalize

from goca.errors import GocaError
from goca.tagging.base import DeclinedError
from goca.text.clean import one_line, storable
from goca.text.spelling import STOP

NounGroup = tuple[str, ...]
"""The nouns in parentheses, or a single noun outside them."""

MOST_NOUNS = 500
"""Most nouns of a caption; a model in a loop names thousands."""
LONGEST = 100_000
"""Most characters of a caption that `parse` reads."""

_NUMBER = re.compile(r"(?<![\w.])\d{1,3}\.(?=\s)|^[ *-]*\d{1,3}\)", re.MULTILINE)  # of a list: "1. cat", "2) dog"
_DIVIDER = re.compile(r"[,;|\u2022\u3001\uFF0C\uFF1B\r\n]")
_PARENTHESIS = re.compile(r"([()\uFF08\uFF09])")
_MARKS = " \"'`\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f«»「」『』*.:·_-\u2013\u2014[]{}<>"
_LEADING = re.compile(rf"(?:[{re.escape(_MARKS)}]|(?:a|an|the|and)\s)+")
_LEAD_IN = re.compile(rf".*:(?=[{re.escape(_MARKS)}]|$)")  # "Nouns: cat", but not "16:9 screen"


def parse(caption: str) -> tuple[NounGroup, ...]:
    """The nouns of a caption.

    Commas, semicolons, bullets, list numbers and line breaks separate nouns. A parenthesis opens a group, which ends at
    the next parenthesis or with the caption. Quotation marks, brackets, bold type, articles and lead-ins that end in a
    colon ("Nouns: cat") are removed. If a noun occurs twice, the first occurrence is kept.

    Returns:
        Nouns in lower case, in the caption's order.

    Raises:
        GocaError: The caption is longer than `LONGEST`.
    """
    if len(caption) > LONGEST:
        raise GocaError(f"a caption of {len(caption):,} characters is not a list of what an image shows: shorten it")
    # The lower case of this letter is two characters, which no word is spelled with.
    lower = normalize("NFC", caption).replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower()
    pieces = _PARENTHESIS.split(_NUMBER.sub("\n", normalize("NFC", lower)))
    groups: list[NounGroup] = []
    seen: set[str] = set()
    for piece, bracket in zip(pieces[::2], ["", *pieces[1::2]], strict=True):
        nouns = []
        for noun in map(clean, _DIVIDER.split(piece)):
            if noun and key(noun) not in seen:
                seen.add(key(noun))
                nouns.append(noun)
        if bracket in ("(", "\uff08") and nouns:
            groups.append(tuple(nouns))
        else:
            groups += [(noun,) for noun in nouns]
    return tuple(groups)


def clean(noun: str) -> str:
    """A noun without decoration; "" if there are only articles and punctuation."""
    bare = one_line(noun)
    for prefix in (_LEAD_IN, _LEADING):
        match = prefix.match(bare)
        bare = bare[match.end() :] if match else bare
    bare = bare.rstrip(_MARKS)
    return bare if any(map(str.isalnum, STOP.sub("", bare))) else ""


def write(groups: Iterable[Sequence[str]]) -> str:
    """A caption that `parse` reads as these groups. Raises GocaError for other nouns, such as "door, double"."""
    groups = [tuple(group) for group in groups]
    caption = ", ".join(group[0] if len(group) == 1 else f"({', '.join(group)})" for group in groups)
    readable = {key(noun) for group in parse(caption) for noun in group}
    for noun in (noun for group in groups for noun in group):
        if key(noun) not in readable:
            raise GocaError(f'"{noun}" cannot be in a list of nouns: leave out its punctuation, or choose another name')
    return caption


def key(noun: str) -> str:
    """The same key for all spellings of a noun: "Traffic_light", "traffic-light" and "traffic light" are the same."""
    return " ".join(re.findall(r"[^\s_-]+", noun)).casefold()


LONGEST_CAPTION = 4000
"""Most characters of an answer's caption; a longer one is not a list of a few dozen words."""
MOST_WORDS = 6
"""Most words of a noun; longer ones are sentences."""

# A tag of any kind: <think>, </seed:think>, [THINK], ◁think▷, <|START_THINKING|>, <details type="reasoning">.
_TAG = re.compile(
    r"[<\[{\u25c1\u3010\uff1c\u3008\u00ab] ?[|\uff5c]? ?(?P<end>/?) ?"
    r"(?P<name>(?P<word>[^\W\d_]+)[^<>\[\]{}\u25c1\u25b7,]{0,60}?)"
    r" ?[|\uff5c]? ?[>\]}\u25b7\u3011\uff1e\u3009\u00bb]"
)
_THOUGHT = re.compile(
    r"think|thought|reason|rationale|reflect|analy[sz]|scratch|deliberat|ponder|monolog|critique|"
    r"(?<![a-z])(?:cot|plan|planning|review|inner|chain)(?![a-z])|\u601d\u8003|\u63a8\u7406"
)
_END = re.compile(r"(?<![a-z])(?:end|stop|close)(?![a-z])")
# Thoughts without enclosing tags: OpenAI's channels, even with their marks lost, Gemma's and Ollama's.
_CHANNELS = (
    re.compile(r"\A.*<\|channel\|> ?final ?(?:<\|constrain\|>\w*)?<\|message\|>", re.DOTALL),
    re.compile(r"<\|channel\|>.*\Z", re.DOTALL),
    re.compile(r"\Aanalysis.*assistant ?final", re.DOTALL),
    re.compile(r"<(unused|ctrl)94>.*?(?:<\1\d+>|\Z)", re.DOTALL),
    re.compile(r"\A\s*thinking\.{3}.*?(?:\.{3} ?done thinking\.?|\Z)", re.DOTALL | re.IGNORECASE),
)
_ANSWER = re.compile(
    r"^[ \t*_#>-]*(?:(?:the|my) )?(?:final )?(?:answer|output|response)s?(?: is)?[ \t*_]*:", re.M | re.I
)
_THOUGHT_BLOCK = re.compile(
    r"^[ \t]*```\w*(?:think|thought|reason|analysis)\w*$.*?(?:^[ \t]*```|\Z)"
    r"|^[ \t*_#>-]*(?:(?:my|chain of|step by step) )?(?:think\w*|thought\w*|reason\w*|analysis|rationale|reflection\w*|"
    r"explanation|observations?|description|notes?|disclaimer|warning|error|step \d+)(?: \w+)?"
    r"[ \t*_]*:.*?(?:\n[ \t]*\n|\Z)",
    re.DOTALL | re.M | re.I,
)
"""A code fence of thoughts, or a heading and the text below it up to a blank line."""
_TURN_END = re.compile(
    r"<\|(?:im_end|end|eot_id|eom_id|endoftext|end_of_text|return)\|>|</s>|<(?:eos|end_of_turn)>|<\uff5cend.of.sentence\uff5c>"
)
_PAIR = re.compile(r"<([a-z][\w:.-]*)(?:\s[^<>]*)?>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)
_KEPT = frozenset(
    (  # noqa: SIM905
        "answer answers final final_answer solution nouns noun output response result results list caption labels "
        "label objects object items item foreground background ref phrase p b i u s em strong ul ol li br div span "
        "body html pre code table tr td json text"
    ).split()
)
"""Elements whose content is the answer; other elements are dropped with their content."""
_MARKUP = re.compile(r"</?[a-z][^<>]*>|<[|\uff5c][^<>]*[|\uff5c]>|^[ \t]*(?:```|#).*$|\\[a-z]+\{", re.IGNORECASE | re.M)

_BULLET = re.compile(r"\s*(?:[-*+\u2022\u25aa]|\d{1,3}[.)])\s+")
_SENTENCE = re.compile(r"(?<=[^\W\d]{3})\.\s+|[!?]+\s+")
_ITEM = re.compile(r"[^,;|\u2022\u3001\uff0c\uff1b()\uff08\uff09]+")
_HEADING = re.compile(
    r"(?:foreground|background|people|animals?|objects?|nouns?|items?|things?|stuff|others?|list|scene)"
)
# Words that occur in sentences but not in names. "Can" and "will" are not among them: there are trash cans.
_PROSE = re.compile(
    r"(?<![\w-])(?:i|im|i'\w+|we|we'\w+|you|your|he|she|they|their|its|it's|this|that|these|those|there|here|"
    r"here's|is|are|am|was|were|been|being|\w+n't|cannot|could|would|should|shall|might|does|did|has|have|had|seems?|appears?|shows|"
    r"depicts?|contains?|includ\w+|let's|let me|maybe|perhaps|probably|possibly|however|because|unfortunately|hmm+|"
    r"not|sorry|apolog\w+|unable|declined?|refused?|as an? (?:\w+ )?(?:ai|assistant|model)|language model)(?![\w-])"
    r"|\?|d\u00e9sol\u00e9|lo siento|no puedo|es tut mir|entschuldig|kann (?:ich )?nicht|mi dispiace|desculpe|lamento|"
    r"\u0438\u0437\u0432\u0438\u043d|\u043d\u0435 \u043c\u043e\u0433\u0443|\u62b1\u6b49|"
    r"\u5bf9\u4e0d\u8d77|\u5c0d\u4e0d\u8d77|\u65e0\u6cd5|\u7121\u6cd5|\u4e0d\u80fd|"
    r"\u7533\u3057\u8a33|\u3059\u307f\u307e\u305b\u3093|\u3067\u304d\u307e\u305b\u3093|\uc8c4\uc1a1"
)
# Items that name nothing in an image: "no people", "none", "on the left".
_NOTHING = re.compile(
    r"(?:no|without)\s(?!.*\b(?:signs?|zone)$).*|(?:in|on|at|of|by|with|from|to|near|behind|under|above|below|beside|"
    r"between|next to)\s.*|no|none|nothing|null|n/a|unknown|yes|sure|certainly|absolutely|of course|ok|"
    r"okay|great|got it|thanks|thank you|nouns?|objects|json|answer|final answer|output|result|user|assistant|system|"
    r"thinking|thoughts?|analysis|[^a-z\u00aa-\U0010ffff]*"
)


def caption_of(answer: str, model: str, names: Iterable[str] = ()) -> str:
    """The caption in a model's answer, see `caption_in`. Raises DeclinedError, with the reason, if there is none."""
    caption = _caption(answer, names)
    begins = f'its answer begins "{one_line(answer[: 2 * LONGEST_CAPTION])[:100]}"'
    if not caption:
        raise DeclinedError(f"{model} names no nouns ({begins}): leave the image out, or ask another model")
    if not _is_short(caption):
        raise DeclinedError(
            f"{model} names too many nouns, in {len(caption):,} characters ({begins}): leave the image "
            "out, or ask another model"
        )
    return caption


def caption_in(answer: str, names: Iterable[str] = ()) -> str:
    """The caption in a vision-language model's answer, JSON, {"nouns": [...]}, or a list of nouns.

    Thoughts, markup, code fences and introductions are removed, and so are sentences: only items separated by
    commas or line breaks, are nouns.

    Args:
        answer: The model's answer.
        names: Names that the model was told to use; they count as nouns, whatever they look like.

    Returns:
        The caption; "" if there is none, as in an apology, or it has more than `LONGEST_CAPTION` characters or
        `MOST_NOUNS` nouns.
    """
    caption = _caption(answer, names)
    return caption if _is_short(caption) else ""


def _is_short(caption: str) -> bool:
    return len(caption) <= LONGEST_CAPTION and sum(map(len, parse(caption))) <= MOST_NOUNS


def _caption(answer: str, names: Iterable[str]) -> str:
    """The caption for `caption_in`, however long."""
    text = _without_thoughts(html.unescape(storable(answer)))
    if len(text) > 2 * LONGEST_CAPTION:  # in JSON the nouns take up more room
        return text
    text = _THOUGHT_BLOCK.sub("\n", text)
    for _ in range(3):  # elements inside elements
        text = _PAIR.sub(lambda match: f"\n{match[2]}\n" if match[1].lower() in _KEPT else "\n", text)
    text = _NUMBER.sub("\n", _MARKUP.sub("\n", text)).strip()
    nouns = _json_nouns(text)
    lines = _SENTENCE.sub("\n", text).split("\n") if nouns is None else nouns
    known = frozenset(map(key, names))
    return ", ".join(listed for line in lines if (listed := _listed(_described(line), known)))


def _without_thoughts(text: str) -> str:
    """The text without thoughts; a chat template may omit their opening tag, and a token limit their closing tag."""
    text = _CHANNELS[0].sub("", text)
    parts: list[str] = []
    position, opened = 0, ""  # the first word of the tag that opened the current thoughts
    for tag in _TAG.finditer(text):
        name, word = tag["name"].lower(), tag["word"].lower()
        is_thought = _THOUGHT.search(name) is not None
        ends = bool(tag["end"] or _END.search(name))
        if not (is_thought or (ends and word == opened)):
            continue
        if not opened:
            parts = [] if ends else [*parts, text[position : tag.start()]]
        position, opened = tag.end(), "" if ends else opened or word
    text = "".join(parts) if opened else "".join(parts) + text[position:]
    for pattern in _CHANNELS:
        text = pattern.sub("\n", text)
    text = text[max((heading.end() for heading in _ANSWER.finditer(text)), default=0) :]
    turns = (turn for turn in _TURN_END.split(text) if turn.strip())
    return next(turns, "")  # later text would be a next turn, which the model made up


def _described(line: str) -> str:
    """The line, or only the noun of a bullet that describes it: "- **Cat**: asleep", or "- Cat - asleep"."""
    bullet = _BULLET.match(line)
    if bullet is None:
        return line
    head, colon, rest = re.split(r"\s[-\u2013\u2014]\s", line[bullet.end() :])[0].partition(":")
    is_list = "," in rest or _HEADING.fullmatch(clean(head.lower())) or not clean(head) or not clean(rest)
    return head + colon + rest if is_list else head


def _listed(line: str, known: frozenset[str]) -> str:
    """The line without items that name nothing; "" if it contains a sentence."""
    line = one_line(line)
    items = {item: clean(item.lower().replace("\u2019", "'")) for item in _ITEM.findall(line)}
    nouns = {item: noun for item, noun in items.items() if noun and key(noun) not in known}
    if any(_PROSE.search(noun) or len(noun.split()) > MOST_WORDS for noun in nouns.values()):
        return ""
    empty = {item for item, noun in nouns.items() if _NOTHING.fullmatch(noun.rstrip("!"))}
    listed = _ITEM.sub(lambda match: "" if match[0] in empty else match[0], line) if empty else line
    return listed.strip(" ,;") if parse(listed) else ""


def _json_nouns(text: str) -> list[str] | None:
    """The nouns of the last JSON object with nouns, or else the last list, in the text; None if there is neither."""
    lists = [nouns for value in _json_values(text) if (nouns := _nouns_of(value)) is not None]
    if lists:
        return next((nouns for nouns in reversed(lists) if nouns), [])
    # Cut off, or not quite JSON: take the complete strings.
    if loose := re.search(r"""["']nouns["']\s*:\s*\[([^\]]*)""", text):
        return [first or second for first, second in re.findall(r"""\"([^"]*)"|'([^']*)'""", loose[1])]
    return [] if re.match(r"""\{\s*["']""", text) else None


def _json_values(text: str) -> Iterator[Any]:
    """The outermost JSON objects and lists in a text."""
    decoder, position = json.JSONDecoder(), 0
    for _ in range(MOST_NOUNS):
        opening = re.compile(r"[{\[]").search(text, position)
        if opening is None:
            return
        try:
            value, position = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            position = opening.end()
        else:
            yield value


def _nouns_of(value: Any) -> list[str] | None:
    """The nouns of a JSON value: a list, an object's "nouns", its lists by kind, or its only list."""
    if isinstance(value, dict):
        lists = {name: member for name, member in value.items() if isinstance(member, list)}
        kinds = [entry for name, member in lists.items() if _HEADING.fullmatch(name.lower()) for entry in member]
        value = value.get("nouns", kinds or (next(iter(lists.values())) if len(lists) == 1 else None))
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return None
    return [noun for entry in value if (noun := _noun_of(entry))]


def _noun_of(entry: Any) -> str:
    """A noun of a JSON list: text, a list of an object's parts, or an object with a single text or a label."""
    if isinstance(entry, list):
        parts = [part for part in entry if isinstance(part, str)]
        return f"({', '.join(parts)})" if parts else ""
    if isinstance(entry, dict):
        texts = [text for text in entry.values() if isinstance(text, str)]
        labels = [entry.get(name) for name in ("noun", "name", "label")]
        entry = next((label for label in labels if isinstance(label, str)), texts[0] if len(texts) == 1 else "")
    return entry if isinstance(entry, str) else ""
