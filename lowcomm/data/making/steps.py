"""Steps of cleaning: a document's text in; its text, or the rule that drops it, out.

Quality filters, languages, PII and MinHash are those of datatrove (https://github.com/huggingface/datatrove),
called for one document at a time: what a step does with a document depends on nothing else, so it does not
matter how documents are divided over processes.
"""

from __future__ import annotations

import importlib
import inspect
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from blake3 import blake3

from lowcomm import arguments
from lowcomm.data.making.spec import StepSpec
from lowcomm.errors import ConfigError

KEY_BYTES = 16
"""Of a document's hash, and of each of its MinHash bands."""
MINHASH = "minhash"
DUPLICATES = "duplicates"


class Cleaned(NamedTuple):
    """A document after a step: its text, and the rule by which it is dropped, if it is."""

    text: str
    dropped: str = ""


Clean = Callable[[str], Cleaned]
Bands = Callable[[str], list[bytes] | None]
"""The hashes of a document of which near-duplicates share one; None for one that is too short to tell."""


def make_steps(specs: tuple[StepSpec, ...]) -> tuple[list[Clean], int, Bands | None]:
    """What cleans a document, how many bands `minhash` has, and what computes them, if it is declared.

    Raises:
        ConfigError: a step is unknown, its settings are wrong, or what it needs isn't there.
    """
    made: list[Clean] = []
    for number, spec in enumerate(specs, start=1):
        try:
            if spec.name == MINHASH:
                if number < len(specs):
                    raise ConfigError("expected it to be the last step: it compares what the others leave")
                return made, *_minhash(spec.settings)
            if spec.name not in STEPS:
                raise ConfigError(f"expected one of {', '.join((*STEPS, MINHASH))}, got {spec.name!r}")
            known = inspect.signature(STEPS[spec.name]).parameters
            if len(known) != 1 or "settings" not in known:
                _check_settings(spec.settings, known)
                made.append(STEPS[spec.name](**spec.settings))
            else:
                made.append(STEPS[spec.name](spec.settings))
        except ConfigError as error:
            raise ConfigError(f"step {number} ({spec.name}): {error}") from error
    return made, 0, None


def normalise(form: str = "NFC") -> Clean:
    """Unicode's normal forms (UAX 15); carriage returns before line ends go."""
    if form not in ("NFC", "NFD", "NFKC", "NFKD"):
        raise ConfigError(f"form: expected NFC, NFD, NFKC or NFKD, got {form!r}")
    return lambda text: Cleaned(unicodedata.normalize(form, text.replace("\r\n", "\n")))  # type: ignore[arg-type]


def length(at_least: int = 0, at_most: int = 1 << 40) -> Clean:
    """Documents within bounds, in characters."""
    least = arguments.whole("at_least", at_least, least=0)
    most = arguments.whole("at_most", at_most, least=max(1, least))

    def clean(text: str) -> Cleaned:
        return Cleaned(text, "too short" if len(text) < least else "too long" if len(text) > most else "")

    return clean


def _filter(name: str) -> Callable[[Mapping[str, Any]], Clean]:
    """A filter of datatrove, which may change the text of what it keeps."""

    def make(settings: Mapping[str, Any]) -> Clean:
        made = _of_datatrove("datatrove.pipeline.filters", name, settings)
        with _told():
            from datatrove.data import Document
        model = _where_to_put(made.model) if name == "LanguageFilter" else ""

        def clean(text: str) -> Cleaned:
            document = Document(text=text, id="")
            with _told(model):
                try:
                    found = made.filter(document)
                except ZeroDivisionError:  # some divide by the number of words, and there may be none
                    return Cleaned(text, "no words")
            kept, why = found if isinstance(found, tuple) else (found, "")
            return Cleaned(document.text, "" if kept else why or "filtered")

        clean("A text of a few words: what is missing is said before the first document.\n" * 8)
        return clean

    return make


def pii(settings: Mapping[str, Any]) -> Clean:
    """E-mail and public IP addresses are replaced; always by the same, whatever came before."""
    once = {"email_replacement": "email@example.com", "ip_replacement": "22.214.171.124"}
    made = _of_datatrove("datatrove.pipeline.formatters", "PIIFormatter", {**once, **settings})

    def clean(text: str) -> Cleaned:
        made.emails_replacer._replace_i = made.ip_replacer._replace_i = 0  # several are taken in turn
        return Cleaned(made.format(text))

    return clean


STEPS: dict[str, Callable[..., Clean]] = {
    "normalise": normalise,
    "length": length,
    "language": _filter("LanguageFilter"),
    "gopher_quality": _filter("GopherQualityFilter"),
    "gopher_repetition": _filter("GopherRepetitionFilter"),
    "c4_quality": _filter("C4QualityFilter"),
    "c4_paragraphs": _filter("C4ParagraphFilter"),
    "fineweb_quality": _filter("FineWebQualityFilter"),
    "pii": pii,
}
"""All of them but `minhash`, which drops nothing until all documents are known."""


def _minhash(settings: Mapping[str, Any]) -> tuple[int, Bands]:
    """datatrove's signatures: `num_buckets` bands, each a hash of `hashes_per_bucket` minima."""
    with _told():
        from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
        from datatrove.utils.hashing import HashConfig
    counts = ("n_grams", "num_buckets", "hashes_per_bucket", "seed")
    _check_settings(settings, (*counts, "language"))
    numbers = {
        key: arguments.whole(key, settings[key], least=1, most=1000) for key in counts if key in settings
    }
    config = MinhashConfig(**numbers, hash_config=HashConfig(hash_fc="sha1"))
    language = {"language": settings["language"]} if "language" in settings else {}
    with _told():
        made = MinhashDedupSignature(".", config, **language)
        made.get_shingles("what is missing is said before the first document")

    def bands(text: str) -> list[bytes] | None:
        shingles = made.get_shingles(text)
        if not shingles.size:
            return None
        return [
            blake3(b"".join(minimum.to_bytes(8, "little") for minimum in band)).digest()[:KEY_BYTES]
            for band in made.get_signature(shingles)
        ]

    return config.num_buckets, bands


def _of_datatrove(module: str, name: str, settings: Mapping[str, Any]) -> Any:
    with _told():
        from loguru import logger

        logger.disable("datatrove")
        cls = getattr(importlib.import_module(module), name)
        known = [key for key in inspect.signature(cls).parameters if key != "exclusion_writer"]
        _check_settings(settings, known)
        try:
            return cls(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"expected settings as datatrove's {name} takes them: {error}") from error


def _check_settings(settings: Mapping[str, Any], known: Any) -> None:
    for key in settings:
        if key not in known:
            raise ConfigError(f"{key}: unknown setting; expected one of {', '.join(known) or 'none'}")


@contextmanager
def _told(model: str = "") -> Iterator[None]:
    """What datatrove misses, in one line: a library, or a model that it fetches when it is first used.

    Args:
        model: what to do where there is no network.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"expected datatrove and what it needs, got: {error}; pip install 'lowcomm[cleaning]'"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"expected datatrove to find or fetch its model, got: {' '.join(str(error).split())}{model}"
        ) from error


def _where_to_put(model: Any) -> str:
    """What to fetch for a language filter, and to where."""
    from huggingface_hub import cached_assets_path

    url = str(model.MODEL_URL)
    folder = cached_assets_path("datatrove", namespace="lid", subfolder=model.MODEL_SUBFOLDER)
    return f"; where there is no network put {url} into {folder / url.replace('/', '_')}"
