"""Penn Treebank tokenisation of captions as the COCO caption evaluation does it, in Python, with no Java.

Caption scores are only comparable when the words are cut the same way. The COCO evaluation cuts them with the Stanford
`PTBTokenizer` (CoreNLP 3.4.1, `-preserveLines -lowerCase`) and then drops seventeen punctuation tokens. This module
writes that behaviour as one ordered table of rules, `_RULES`: at each position **the rule that reaches furthest wins,
the first of the table on a tie**. A rule may look ahead, and what it looks at counts as reach: `is` followed by `n't`
(five characters) beats the word `isn` (three).

The rules were fitted to the output of that tokenizer; over the 192,615 captions of COCO val2014, each given to it
alone, there is no difference. Known differences:

* one caption is one line: a line break inside a caption is a blank, as in the COCO code. The original reads on into
  the next caption when one ends in an initial ("sign with a K."), so that there the order of the captions decides
  whether the full stop stays; here each caption stands alone and it stays;
* characters outside the basic plane (emoji) and control characters are dropped, as there; letters added to Unicode
  after version 6 are words here and were dropped there;
* multi-word tokens (`1 1/2`, `555 123 4567`, `<a href="x">`) hold U+00A0 in the place of the blank, as there.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from hf_vlp.metrics.checks import check_strings

# Character classes. Combining marks count as letters only in the scripts where the original knows them (up to Lao).
_MARKS = "".join(chr(code) for code in range(0x300, 0xED0) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
# Python's \w also holds number forms (superscripts, fractions, Roman and circled numerals), no letters here.
_NUMBER_FORMS = "".join(chr(code) for code in range(0xA1, 0x3400) if unicodedata.category(chr(code)) in ("No", "Nl"))
_OUTSIDE_WORDS = rf"\W\d_{_NUMBER_FORMS}\U00010000-\U0010ffff"
_ENTITY_LETTER = r"&[A-Za-z](?:acute|grave|circ|uml|tilde|cedil|ring);"
_L = rf"(?:[^{_OUTSIDE_WORDS}]|[{_MARKS}]|{_ENTITY_LETTER})"  # a letter
_A = rf"(?:[^\W_{_NUMBER_FORMS}\U00010000-\U0010ffff]|[{_MARKS}]|{_ENTITY_LETTER})"  # a letter or a digit
_APOSTROPHE = r"(?:['\u2019\x92]|&apos;)"
_ANY_QUOTE = r"(?:['\u2019\x92`\u2018\x91\u201b]|&apos;)"
_HYPHEN = r"[-_\u058a\u2010\u2011]"
_ELISION = rf"[dDoOlL]{_ANY_QUOTE}"
_CLITIC = rf"{_APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"
_DOMAIN_PART = r"[^\s\"<>|(){}.]+"
_URL_PATH = r"(?:/[^\s\"<>|()]*[^\s\"<>|()?.,!{}-])?"

# Words that keep their full stop. Those of the first group end the token even when letters follow ("Inc.x").
_CLOSED_ABBREVIATIONS = (
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ala ariz calif colo conn ct "
    "dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo assn bhd bros co "
    "corp cos est etc ext inc intl jr ltd plc ppte ppty pte ptes pty ptys seq sr sys tel univ al esq bldg blvd rd "
    "rt sq"
).split()
_OPEN_ABBREVIATIONS = (
    "adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col cpl dept det dr drs elec ens ft gen gov govs "
    "hon insp invt jos lt maj mfg mlle mme mr mrs messrs ms msgr mt mtg natl pfc ph pres prof pvt rep reps rev sen "
    "sens sfc sgt spc st ste supt vs wm"
).split()
# State names that are also words: only with a capital letter.
_CAPITALISED_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash".split()
_CAPITALISED_ABBREVIATIONS += [word.upper() for word in _CAPITALISED_ABBREVIATIONS]
# An abbreviation only before a number: "no. 5", but "he said no."
_NUMBERED_ABBREVIATIONS = "art ca fig figs no nos op pp prop".split()

# After an initial these open a new sentence: "sign K. The street" is "sign k the street".
_SENTENCE_OPENERS = (
    "a about according additionally after an as at but earlier he her here however if in it last many more now once "
    "one other our she since so some such that the their then there these they this we what when while yet you"
).split()
_SENTENCE_OPENERS = [spell(word) for word in _SENTENCE_OPENERS for spell in (str.capitalize, str.upper)]

# Contractions written as one word, and where they are cut.
_JOINED_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "gimme": 3, "lemme": 3, "wanna": 3}

# Characters with a spelling of their own. Brackets stay, because the punctuation filter of COCO looks for "-LRB-" in
# tokens that are in lower case by then.
_SPELLING = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "£": "#", "€": "$", "\x80": "$", "¤": "$", "₠": "$", "¢": "cents",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
}  # fmt: skip
# What that filter does drop, and the characters that the original spells like one of these tokens.
_DROPPED = frozenset("'\"`.,:;?!-…«»‹›‘’‛“”\x85\x91\x92\x93\x94\x96\x97–—―‐‑֊") | {"...", "--", "''", "``"}
# Where a lone symbol is a token; elsewhere (and for every other category) the original drops it as untokenisable.
_SYMBOL_RANGES = (
    (0x21, 0x7FF), (0x964, 0x965), (0xE3F, 0xE3F), (0xE4F, 0xE4F), (0x2013, 0x2023), (0x2026, 0x2026),
    (0x2030, 0x203B), (0x203E, 0x2042), (0x2044, 0x2044), (0x2070, 0x208E), (0x20A4, 0x20A4), (0x20AC, 0x20AC),
    (0x2100, 0x2BFF), (0x3001, 0x3002), (0x3012, 0x3012), (0x30FB, 0x30FB), (0xFF01, 0xFFE6),
)  # fmt: skip


def _spell(token: str) -> list[str]:
    """The token in lower case, as a list; empty when the COCO filter drops it."""
    if token in _DROPPED:
        return []
    return [_SPELLING.get(token) or token.lower()]


def _drop(token: str) -> list[str]:
    return []


def _spell_entity(token: str) -> list[str]:
    token = token.lower()
    return [token.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")]


def _spell_with_blanks(token: str) -> list[str]:
    token = re.sub(r"\s", "\u00a0", token.lower())
    return [token.replace("(", "-lrb-").replace(")", "-rrb-")]


def _straighten(token: str) -> list[str]:
    return [re.sub(_APOSTROPHE, "'", token).lower()]


def _cut_joined(token: str) -> list[str]:
    cut = _JOINED_WORDS[token.lower()]
    return [token[:cut].lower(), token[cut:].lower()]


def _cut_after_t(token: str) -> list[str]:
    return [token[:2].lower(), token[2:].lower()]


def _spell_symbol(token: str) -> list[str]:
    code = ord(token)
    if any(first <= code <= last for first, last in _SYMBOL_RANGES):
        category = unicodedata.category(token)
        if token in _SPELLING or category[0] in "PS" or category == "No":
            return _spell(token)
    return []


def _any_of(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


# Each row: what the token is, what must follow it (adds to the reach, stays in the text), and how the token is spelt.
# Repetitions of parts that fail as a whole are bounded: the next token tries again, which would take quadratic time.
_TABLE: tuple[tuple[str, str, Callable[[str], list[str]]], ...] = (
    # Markup, addresses, handles
    (
        r"<[!?][A-Za-z-][^>\n]*>"
        r"|</?[A-Za-z][\w:.-]*(?:\s+[A-Za-z][\w:.-]*(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'))?)*\s*/?>",
        "",
        _spell_with_blanks,
    ),
    (r"(?i:https?)://[^\s\"<>|()]*[^\s\"<>|()?.,!{}-]", "", _spell),
    (
        rf"(?:(?i:www)\.(?:{_A}+[.-])+[A-Za-z]{{2,4}}|{_L}{_A}*(?:[.-]{_A}+){{0,9}}\.(?i:com|net|org|edu)){_URL_PATH}",
        "",
        _spell,
    ),
    (rf"<?[A-Za-z0-9][^\s\"<>|(){{}}]{{0,63}}@(?:{_DOMAIN_PART}\.)*{_DOMAIN_PART}>?", "", _spell),
    (r"@[A-Za-z_][A-Za-z0-9_]*", "", _spell),
    (rf"#{_L}+", "", _spell),
    (r"&#\d+;", "", _spell),
    (r"(?i:&(?:amp|lt|gt);)", "", _spell_entity),
    (r"(?i:&nbsp;)|&(?:quot|apos|mdash|ndash);", "", _drop),
    # Contractions: the word before n't is cut short, and "'s" and its kind lengthen the reach of the word they follow
    (rf"(?i:{_any_of(_JOINED_WORDS)})", "", _cut_joined),
    (r"(?i:'t(?:is|was))", rf"(?!{_L}(?!'t))", _cut_after_t),
    (rf"{_L}*[^{_OUTSIDE_WORDS}nN]", rf"[nN]{_ANY_QUOTE}[tT]", _spell),
    (rf"[nN]{_ANY_QUOTE}[tT]", "", _straighten),
    (_CLITIC, "(?:[^A-Za-z]|$)", _straighten),
    (rf"{_L}+", _CLITIC, _spell),
    (rf"[yY]{_APOSTROPHE}", _L, _spell),
    # Words with an apostrophe inside or at an end
    (
        rf"(?i:{_APOSTROPHE}(?:em|till?|cause)|(?:ol|somethin|dunkin){_APOSTROPHE}|nor'easter|nat'l|e'er|c'(?:mon|est)|s'mores)",
        "",
        _spell,
    ),
    (rf"{_APOSTROPHE}[nN]{_APOSTROPHE}|[lLdDjJ]{_APOSTROPHE}", "", _spell),
    # A straight quote before a word opens a quotation; a curly one before s, m, d, n is still an apostrophe
    ("'", r"[A-Za-z]\S", _drop),
    (_CLITIC, "", _straighten),
    (rf"{_APOSTROPHE}[nN]", "", _spell),
    (rf"[A-HJ-XZn]{_ANY_QUOTE}{_L}{_L}+", "", _spell),
    (rf"{_L}+[aeiouyAEIOUY]{_ANY_QUOTE}[aeiouA-Z]{_L}*", "", _spell),
    (rf"{_APOSTROPHE}(?:[2-9]0s|\d\d(?=\s|$))", "", _spell),
    # Abbreviations
    (rf"(?i:{_any_of(_CLOSED_ABBREVIATIONS)})\.", r"(?:[a-z]|[^A-Za-z\s]\S*)?", _spell),
    (rf"(?i:{_any_of(_OPEN_ABBREVIATIONS)})\.", "", _spell),
    (rf"(?:{_any_of(_CAPITALISED_ABBREVIATIONS)})\.", "", _spell),
    (rf"(?i:{_any_of(_NUMBERED_ABBREVIATIONS)})\.", r"\s?\d", _spell),
    (_L, rf"\.\s+(?:{_any_of(_SENTENCE_OPENERS)})(?=\s|$)", _spell),
    (rf"(?:{_L}\.)+|(?i:ph\.d\.)", "", _spell),
    (rf"{_A}+(?:[-.]{_A}+){{0,9}}\.", "[,;:]", _spell),
    # Words, with hyphens, slashes, full stops and the like inside
    (rf"{_L}{_A}*(?:[.?!]{_L}{_A}*)+", "", _spell),
    (rf"(?:{_ELISION}{_A})?{_A}+(?:{_HYPHEN}(?:{_ELISION}{_A})?{_A}+)*", "", _spell),
    (rf"{_A}+(?:[.,]{_A}+){{0,9}}[.,]?(?:-{_A}+)+", "", _spell),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", "", _spell),
    (r"[A-Z]+(?:(?:\+|&(?:amp;)?)[A-Z]+)+", "", _spell_entity),
    (r"[cC]\+\+|[cCfF]#", "", _spell),
    # Numbers, money, telephones
    (r"[-+]?(?:\d+(?:[.,:]\d+)*|(?:[.,:]\d+)+)", "", _spell),
    (r"(?:\d{1,4}[- \u00a0])?\d{1,4}\\?/\d{1,4}", "", _spell_with_blanks),
    (
        r"(?:\(\d{2,3}\)[- \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]?\d{3,5}",
        "",
        _spell_with_blanks,
    ),
    (r"[A-Z]*\$", "", _spell),
    # Faces
    (r"[<>]?[:;=]['o*-]?[()DPdpO\\{@|\[\]]", "(?![A-Za-z0-9])", _spell_with_blanks),
    (r"[-^=~<>']_[-^=~<>']|\([-^=~<>'][_.]?[-^=~<>']\)", "", _spell_with_blanks),
    # Runs of one symbol
    (r"\.{3,}|-{2,}|''|``", "", _drop),
    (r"[?!]{2,}|\\?\*+|_{2,}|@{2,}|#{2,}|<<|>>", "", _spell),
)
_RULES = tuple((re.compile(f"({token}){context}"), spell) for token, context, spell in _TABLE)

_PLAIN_WORD = re.compile(r"[A-Za-z]+(?=\s|$)")
_BLANKS = re.compile(r"\s+")
# The only rules that read across a blank are those of numbers, of markup, and of a sentence opened after an initial.
_READS_ACROSS_BLANKS = re.compile(r"[\d<]|\.\s+[A-Z]")


def _scan(text: str) -> list[str]:
    tokens, position, end = [], 0, len(text)
    while position < end:
        blanks = _BLANKS.match(text, position)
        if blanks:
            position = blanks.end()
            continue
        plain = _PLAIN_WORD.match(text, position)
        if plain:
            word = plain.group().lower()
            cut = _JOINED_WORDS.get(word)
            tokens += (word[:cut], word[cut:]) if cut else (word,)
            position = plain.end()
            continue
        reach, stop, spell = 0, position + 1, _spell_symbol
        for rule, spelling in _RULES:
            match = rule.match(text, position)
            if match and match.end() > reach:
                reach, stop, spell = match.end(), match.end(1), spelling
        tokens += spell(text[position:stop])
        position = stop
    return tokens


@lru_cache(maxsize=1 << 16)
def _scan_chunk(chunk: str) -> str:
    return " ".join(_scan(chunk))


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenise captions as the COCO caption evaluation does.

    Returns one string per caption: lower-case tokens joined by single blanks, punctuation dropped. Clitics are cut off
    ("it's" becomes "it 's", "can't" becomes "ca n't"), brackets become "-lrb-" and "-rrb-", abbreviations keep their
    full stop. An empty caption, or one of punctuation only, becomes the empty string. Applying it twice is not the
    same as once.

    Raises `TypeError` when given a single string or anything that is not a string.

    ```python
    >>> ptb_tokenize(["A man's dog can't swim!"])
    ["a man 's dog ca n't swim"]

    ```
    """
    check_strings(captions, "captions")
    return [_tokenize(caption) for caption in captions]


def _tokenize(caption: str) -> str:
    if "\xad" in caption:  # a soft hyphen is no character of the word
        caption = caption.replace("\xad", "")
    if _READS_ACROSS_BLANKS.search(caption):
        return " ".join(_scan(caption))
    return " ".join([tokens for tokens in map(_scan_chunk, caption.split()) if tokens])


def clear_cache() -> None:
    """Forget the words already cut (for measurements; the cache is bounded and never wrong)."""
    _scan_chunk.cache_clear()
